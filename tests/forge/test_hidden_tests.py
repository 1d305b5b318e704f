"""Test functions are taken out of their files, and nothing else is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_project import TESTS, run_pytest

from palestra.forge.hidden_tests import without_tests

FILE = b"""\
# About this file.
import pytest

LIMIT = 3


def helper(x):
    return x


# Why this matters.
# And how.
@pytest.mark.parametrize("a", [1, 2])
@pytest.mark.slow
def test_a(a):
    assert helper(a)  # always
    # the end of it


# About what follows.

def test_b():
\tassert LIMIT == 3
class TestC:
    \"\"\"Its own words.\"\"\"

    def test_a(self):
        pass

    async def test_d(self): pass


class TestE(TestC):
    @staticmethod
    def make():
        return 1

    def test_e(self):
        assert self.make()
"""


def test_a_function_goes_with_its_decorators_and_comments() -> None:
    left = without_tests(FILE, ["test_a[2]"])
    assert left is not None
    start, end = FILE.index(b"\n\n# Why this"), FILE.index(b"\n\n# About what")
    assert left == FILE[:start] + FILE[end:]
    assert b"def test_a(self)" in left, "a method of the same name stays"


def test_comments_of_others_and_tabs_stay() -> None:
    left = without_tests(FILE, ["test_b"])
    assert left is not None
    assert b"# About what follows.\nclass TestC:" in left
    assert b"LIMIT == 3" not in left


def test_methods_go_one_by_one_and_the_class_when_it_is_named() -> None:
    one = without_tests(FILE, ["TestC::test_a"])
    assert one is not None
    assert b"async def test_d" in one
    both = without_tests(FILE, ["TestC::test_a", "TestC::test_d[x]"])
    assert both is not None, "a class that others name stays"
    assert b"class TestC:" in both
    assert b"test_d" not in both


def test_an_empty_class_goes_and_one_with_helpers_stays() -> None:
    left = without_tests(FILE, ["TestE::test_e"])
    assert left is not None
    assert b"def make()" in left
    data = (
        b"import x\n\n\nclass TestA:\n    class TestB:\n        def test_c(self):\n            x\n"
    )
    assert without_tests(data, ["TestA::TestB::test_c"]) == b"import x\n"


@pytest.mark.parametrize(
    ("data", "left"),
    [
        (b"if 1:\n    def test_a():\n        pass\n", b"if 1:\n    pass\n"),
        (
            b"try:\n    x\nexcept OSError:\n    def test_a(): 0\nelse:\n    def test_a(): 1\n",
            b"try:\n    x\nexcept OSError:\n    pass\nelse:\n    pass\n",
        ),
        (b"def test_a(): pass\ndef test_a(): 0\nx = 1", b"x = 1"),
        (b"x = 1\r\n\r\ndef test_a():\r\n    pass\r\n\r\ny = 2\r\n", b"x = 1\r\n\r\ny = 2\r\n"),
        (b"def test_a(): pass", b""),
        (b"def test_a():\n    '''\n# no comment\n'''\nz = 1\n", b"z = 1\n"),
        ("# é\ndef test_a():\n    'ü'\né = 1\n".encode(), "é = 1\n".encode()),
    ],
)
def test_other_shapes(data: bytes, left: bytes) -> None:
    assert without_tests(data, ["test_a"]) == left


@pytest.mark.parametrize(
    ("data", "tests"),
    [
        (FILE, ["test_z"]),
        (FILE, ["TestE::test_a"]),  # inherited
        (FILE, ["TestZ::test_a"]),
        (FILE, ["pkg.core.chunk"]),  # a doctest
        (FILE, [""]),
        (b"def test_a(): pass\ntest_b = test_a\n", ["test_a"]),  # used
        (b"def test_a(): pass\ntest_b = test_a\n", ["test_b"]),  # generated
        (b"def test_a(:", ["test_a"]),
        (b"\xff\xfe", ["test_a"]),
        (b"\xef\xbb\xbfdef test_a(): pass\n", ["test_a"]),
        (b"# coding: latin-1\ndef test_a():\n    '\xe9'\n", ["test_a"]),
        (b"(" * 100_000, ["test_a"]),
    ],
)
def test_what_cannot_be_taken_out_alone(data: bytes, tests: list[str]) -> None:
    assert without_tests(data, tests) is None


@given(st.sets(st.sampled_from([f"test_{c}" for c in "abcdef"]), min_size=1), st.randoms())
def test_what_is_left_is_there_in_its_order(gone: set[str], random: object) -> None:
    parts = {
        f"test_{c}": f"# {c}\n@mark({i})\ndef test_{c}():\n    assert {i}\n"
        for i, c in enumerate("abcdef")
    }
    parts["mark"] = "def mark(n): return lambda f: f\n"
    order = ["mark", *(f"test_{c}" for c in "fbdace")]
    left = without_tests("\n\n".join(parts[n] for n in order).encode(), sorted(gone))
    assert left is not None
    tree = ast.parse(left)
    assert [n.name for n in tree.body if isinstance(n, ast.FunctionDef)] == [
        name for name in order if name not in gone
    ]
    assert all(f"# {name[-1]}\n".encode() not in left for name in gone)


def test_real_pytest_collects_the_others(tmp_path: Path) -> None:
    gone = ["test_plain", "test_stacked[9-1]", "TestOuter::TestInner::test_deep", "Unit::test_true"]
    left = without_tests(TESTS.encode(), gone)
    assert left is not None
    (tmp_path / "stock.py").write_text("check = chunk = lookup = print\n")
    (tmp_path / "test_stock.py").write_bytes(left)
    log = run_pytest(tmp_path, "--collect-only", "-q")
    assert "test_stock.py::Unit::test_equal" in log
    assert "test_stock.py::TestOuter::test_method" in log
    for name in gone:
        assert f"::{name.partition('[')[0]}" not in log, name
