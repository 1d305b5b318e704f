"""A small project whose tests fail in every shape, and the log of a real pytest run on it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from palestra.forge.records import Project

CORE = '''\
def chunk(items, size):
    """Cut a list.

    >>> chunk([1, 2, 3], 2)
    [[1, 2], [3]]
    """
    return [items[i : i + size] for i in range(0, len(items), size + 1)]


def lookup(table, key):
    return inner(table, key)


def inner(table, key):
    return table["key"]


def check(number):
    if number < 0:
        raise ValueError(f"negative: {number}")
    return number
'''
TESTS = """\
import unittest

import pytest

import stock
from stock import check, chunk
from stock import lookup as find

CASES = [("a b", 1, ["a", " ", "b"]), ("x - y", 2, ["x ", "- ", "y"])]


@pytest.fixture
def numbers():
    return [1, 2, 3]


@pytest.fixture
def broken():
    return find({"b": 1}, "b")


@pytest.fixture
def made(tmp_path, numbers):
    return numbers


def test_plain():
    items = [1, 2, 3, 4]
    unused = 7
    assert check(5) == 5
    out = chunk(items, 2)
    assert out == [[1, 2], [3, 4]]


def test_where():
    assert len(chunk([1, 2, 3], 1)) == 3


def test_reversed():
    expected = [[1], [2]]
    assert expected == chunk([1, 2], 1)


def test_fixture(numbers):
    assert chunk(numbers, 2) == [[1, 2], [3]]


def test_deep_fixture(made):
    assert chunk(made, 2) == [[1, 2], [3]]


@pytest.mark.parametrize("size, expected", [(1, [[1], [2]]), (2, [[1, 2]])])
def test_parameters(size, expected):
    assert chunk([1, 2], size) == expected, "a message"


@pytest.mark.parametrize(("text", "size", "expected"), CASES)
def test_blanks(text, size, expected):
    assert chunk(text, size) == expected


@pytest.mark.parametrize("size", [1, pytest.param(2, id="two")])
@pytest.mark.parametrize("first", [9, 8])
def test_stacked(first, size):
    assert chunk([first, 0, 0, 0], size)[1] == [0] * size + [first]


def test_raises():
    with pytest.raises(KeyError):
        check(1)


def test_raises_match():
    with pytest.raises(ValueError, match="not below"):
        check(-1)


def test_raises_call():
    pytest.raises(ValueError, check, 2)


def test_other_exception():
    with pytest.raises(ValueError):
        find({}, "a")


def test_unexpected():
    table = {"b": 1}
    find(table, "b")


def test_at_setup(broken):
    pass


class TestOuter:
    def test_method(self):
        assert stock.chunk([1, 2], 1) == [[1], [2]]

    class TestInner:
        def test_deep(self):
            assert not chunk([1], 1)


class Unit(unittest.TestCase):
    size = 2

    def setUp(self):
        super().setUp()
        self.items = [1, 2, 3]

    def test_equal(self):
        self.assertEqual(chunk(self.items, self.size), [[1, 2], [3]])

    def test_subtests(self):
        for number in (1, 2):
            with self.subTest(number=number):
                self.assertEqual(check(number), 2)

    def test_no_exception(self):
        with self.assertRaises(ValueError):
            check(3)

    def test_true(self):
        self.assertTrue(chunk([], 1))


def test_chained():
    try:
        find({}, "a")
    except KeyError as error:
        raise RuntimeError("no luck") from error


def test_local():
    def helper(n):
        return n.missing

    assert helper(chunk) == 1


def test_passes():
    assert check(1) == 1


def test_forged():
    print("=== FAILURES ===")
    print("___ test_plain ___")
    print("E   AssertionError: forged")
    print("=== short test summary info ===")
    print("FAILED test_stock.py::test_passes - forged")
    assert chunk([5], 1) == []
"""
OTHER = """\
from stock import chunk


def test_plain():
    assert chunk([3, 4], 1) == [[3], [4]]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A project on this machine and what pytest said of it."""

    root: Path
    log: str

    @property
    def project(self) -> Project:
        return Project(
            name="stock",
            version="1.2.3",
            licence="MIT",
            origin="git:stock@0",
            image="none",
            checkout=self.root,
            commit="0" * 40,
            sources=("stock.py",),
            tests=("test_stock.py", "other/test_other.py"),
            python="3.11",
            requirements=(),
        )

    def source(self, path: str) -> str | None:
        file = self.root / path
        return file.read_text() if file.is_file() and path != "stock.py" else None


def run_pytest(root: Path, *options: str) -> str:
    """Run real pytest in a folder, without any plugin, and return what it prints."""
    path = os.environ.get("PATH", "")
    ran = subprocess.run(
        [sys.executable, "-B", "-m", "pytest", "-rA", "--tb=short", *options, "."],
        cwd=root,
        env={
            "PATH": path,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_ADDOPTS": "-p no:cacheprovider",
            "PYTHONPATH": str(root),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ran.stdout


def make_run(root: Path) -> Run:
    """Write the project and run its tests."""
    (root / "other").mkdir(parents=True)
    (root / "stock.py").write_text(CORE)
    (root / "test_stock.py").write_text(TESTS)
    (root / "other" / "test_other.py").write_text(OTHER)
    (root / "pytest.ini").write_text("[pytest]\n")
    return Run(root=root, log=run_pytest(root, "--doctest-modules"))
