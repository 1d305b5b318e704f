"""How tests failed is read from real logs, and from hostile ones without harm."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_project import Run, make_run, run_pytest

from palestra.environment.grading.log_parsers import parse_log_pytest
from palestra.forge.failures import MAX_FRAMES, MAX_MESSAGE_LINES, read_failures
from palestra.forge.records import Failure


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("failures") / "project")


@pytest.fixture(scope="module")
def failures(run: Run) -> dict[str, Failure]:
    return {failure.test: failure for failure in read_failures(run.log)}


def named(failures: dict[str, Failure], name: str) -> Failure:
    return failures[f"test_stock.py::{name}"]


def test_the_ids_are_those_of_the_log_parser(run: Run, failures: dict[str, Failure]) -> None:
    statuses = parse_log_pytest(run.log)
    failing = {test for test, status in statuses.items() if status in ("FAILED", "ERROR")}
    # Forged and failed at once, or seen by subtests only.
    unclear = {"test_stock.py::test_passes", "test_stock.py::Unit::test_subtests"}
    assert failing - unclear <= failures.keys()
    assert len(failing) > 25
    assert failures.keys() - failing <= unclear
    assert "test_stock.py::test_blanks[a" in failures, "an id ends at its first blank"


def test_error_message_and_frames(failures: dict[str, Failure]) -> None:
    plain = named(failures, "test_plain")
    assert plain.error == "AssertionError"
    assert plain.message.startswith("assert [[1, 2], [4]] == [[1, 2], [3, 4]]\n")
    assert [(f.path, f.function) for f in plain.frames] == [("test_stock.py", "test_plain")]
    where = named(failures, "test_where")
    assert " +    where [[1], [3]] = chunk([1, 2, 3], 1)" in where.message.split("\n")
    unexpected = named(failures, "test_unexpected")
    assert (unexpected.error, unexpected.message) == ("KeyError", "'key'")
    assert [(f.path, f.function) for f in unexpected.frames] == [
        ("test_stock.py", "test_unexpected"),
        ("stock.py", "lookup"),
        ("stock.py", "inner"),
    ]


def test_tests_of_one_name_are_told_apart_by_their_files(failures: dict[str, Failure]) -> None:
    assert failures["other/test_other.py::test_plain"].message.startswith("assert [[3]] == ")
    assert named(failures, "test_plain").message.startswith("assert [[1, 2], [4]] == ")


def test_every_shape_of_test(failures: dict[str, Failure]) -> None:
    assert named(failures, "TestOuter::TestInner::test_deep").error == "AssertionError"
    assert named(failures, "Unit::test_equal").message.startswith("Lists differ: ")
    assert named(failures, "test_parameters[1-expected0]").message.startswith("a message\n")
    assert named(failures, "test_at_setup").frames[0].function == "broken"
    assert named(failures, "test_raises").error == "Failed"
    chained = named(failures, "test_chained")
    assert (chained.error, chained.message) == ("RuntimeError", "no luck")
    doctest = failures["stock.py::stock.chunk"]
    assert doctest.error == "DocTestFailure"
    assert "Got:\n    [[1, 2]]" in doctest.message
    assert [(f.path, f.line) for f in doctest.frames] == [("stock.py", 4)]


def test_what_a_test_prints_is_not_its_failure(failures: dict[str, Failure]) -> None:
    assert named(failures, "test_forged").message.startswith("assert [[5]] == []")
    assert all("forged" not in f.message for f in failures.values())


def test_colours_do_not_matter(run: Run, failures: dict[str, Failure]) -> None:
    coloured = run_pytest(run.root, "--doctest-modules", "--color=yes")
    assert "\x1b[31m" in coloured
    assert {f.test: f.error for f in read_failures(coloured)} == {
        test: failure.error for test, failure in failures.items()
    }


def test_a_module_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("import nowhere_to_be_found\n")
    (failure,) = read_failures(run_pytest(tmp_path))
    assert (failure.test, failure.error) == ("test_a.py", "ModuleNotFoundError")


def test_long_tracebacks_and_messages_are_cut(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(
        "def f(n):\n    if n: g(n)\n    raise ValueError('x\\n' * 500)\n"
        "def g(n):\n    f(n - 1)\n"
        "def test_a():\n    f(150)\n"
    )
    (failure,) = read_failures(run_pytest(tmp_path))
    assert len(failure.frames) == MAX_FRAMES
    assert failure.frames[0].function == "test_a"
    assert failure.frames[-1].function == "f"
    assert failure.message.count("\n") < MAX_MESSAGE_LINES


SUMMARY = "=== short test summary info ===\n"
HOSTILE = {
    "one long line": "=== FAILURES ===\n" + "_" * 3_000_000,
    "a dashed line": "=== FAILURES ===\n" + "_ " * 1_500_000,
    "escapes": "\x1b[" * 1_500_000,
    "many sections": "=== FAILURES ===\n" + "___ a ___\nt.py:1: in a\n" * 30_000 + SUMMARY
    + "FAILED t.py::a\n" * 30_001,
    "many files": "=== FAILURES ===\n"
    + "".join(f"___ a ___\nt{i}.py:1: in a\n" for i in range(20_000))
    + SUMMARY + "".join(f"FAILED t{i}.py::a\n" for i in range(20_001)),
    "subtests": SUMMARY + ("SUBFAILED" + " a::" * 500 + "\n") * 2000,
    "frames": "=== FAILURES ===\n___ a ___\n" + (":1" * 900 + "\n") * 4000 + SUMMARY
    + "FAILED t.py::a\n",
    "files": "=== FAILURES ===\n___ a ___\n" + ('File "' * 300 + "\n") * 4000 + SUMMARY
    + "FAILED t.py::a\n",
    "replaced bytes": "\ufffd\x00\x1c\u2028=== FAILURES ===\n" * 30_000,
}  # fmt: skip


@pytest.mark.parametrize("log", HOSTILE.values(), ids=HOSTILE)
def test_hostile_logs_take_linear_time(log: str) -> None:
    started = time.process_time()
    read_failures(log)
    assert time.process_time() - started < 15  # seconds; what is quadratic takes minutes


def lines() -> Iterator[str]:
    yield from ("=== FAILURES ===", "=== ERRORS ===", "=== short test summary info ===")
    yield from ("___ a ___", "___ A.b[c d] ___", "_ _ _", "___  ___", "E   ", "E", "E   x: y")
    yield from ("FAILED t.py::a - x", "ERROR t.py", "ERROR ", "FAILED ", "SUBFAILED(i=0) t.py::a")
    yield from ("t.py:1: in a", "t.py:999999999999: in a", "/x.py:3: DocTestFailure", "---- x ----")
    yield from ("ERROR at setup of ", "___ ERROR at setup of a ___", "___ [doctest] ___", "\ud800")


@given(st.lists(st.one_of(st.sampled_from(tuple(lines())), st.text()), max_size=30))
def test_no_log_raises(log: list[str]) -> None:
    for failure in read_failures("\n".join(log)):
        assert failure.test
        assert failure.error
