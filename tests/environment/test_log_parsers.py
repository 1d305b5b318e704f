"""Parsers against output as the runners print it, and against rows that exist."""

import time

import pytest

from palestra.environment.grading.log_parsers import PARSERS, parser_named
from palestra.errors import TaskError

PYTEST = """\
============================= test session starts ==============================
collected 9 items

tests/test_a.py .F.sxX                                                   [100%]
----------------------------- Captured stdout call -----------------------------
PASSED
ERROR    root:loop.py:7 PASSED tests/test_a.py::test_bad is only a log line
=========================== short test summary info ============================
PASSED tests/test_a.py::test_good
PASSED tests/test_a.py::test_param[a b]
PASSED tests/test_a.py::TestC::test_param[x-1.0]
SKIPPED [2] tests/test_a.py:7: needs a cluster
XFAIL tests/test_a.py::test_known - reason: later
XPASS tests/test_a.py::test_mended later
ERROR tests/test_b.py - ImportError: no module named b
FAILED tests/test_a.py::test_bad - AssertionError: assert 1 == 2
FAILED tests/test_a.py::test_no_reason
========================= 2 failed, 3 passed in 0.05s ==========================
"""


def parse(name: str, log: str) -> dict[str, str]:
    return {test: str(status) for test, status in parser_named(name)(log).items()}


def test_pytest_summary_gives_every_status_and_cuts_ids_at_the_first_blank() -> None:
    assert parse("parse_log_pytest", PYTEST) == {
        "tests/test_a.py::test_good": "PASSED",
        "tests/test_a.py::test_param[a": "PASSED",
        "tests/test_a.py::TestC::test_param[x-1.0]": "PASSED",
        "tests/test_a.py::test_known": "XFAIL",
        "tests/test_a.py::test_mended": "XPASS",
        "tests/test_b.py": "ERROR",
        "tests/test_a.py::test_bad": "FAILED",
        "tests/test_a.py::test_no_reason": "FAILED",
    }


def test_pytest_takes_status_words_only_at_the_beginning_of_a_line() -> None:
    log = "  PASSED a::b\nPASSEDNESS c::d\nit PASSED e::f\nPASSED\nPASSED \nFAILED\r\n"
    assert parse("parse_log_pytest", log) == {}


def test_pytest_survives_carriage_returns() -> None:
    assert parse("parse_log_pytest", "PASSED a::b\r\nFAILED a::c - x\r\n") == {
        "a::b": "PASSED",
        "a::c": "FAILED",
    }


def test_of_two_lines_for_one_id_the_later_counts() -> None:
    log = "PASSED t.py::test[a b]\nFAILED t.py::test[a c] - no\n"
    assert parse("parse_log_pytest", log) == {"t.py::test[a": "FAILED"}


@pytest.mark.parametrize(
    ("printed", "wanted"),
    [
        ("t.py::t[/tmp/x/data.txt]", "t.py::t[/data.txt]"),
        ("t.py::t[//host/x]", "t.py::t[//host/x]"),
        ("t.py::t[/a/*]", "t.py::t[/a/*]"),
        ("t.py::t[a-b]", "t.py::t[a-b]"),
        ("t.py::t", "t.py::t"),
    ],
)
def test_options_shorten_a_parameter_that_is_a_path(printed: str, wanted: str) -> None:
    for name in ("parse_log_pytest_options", "parse_log_requests", "parse_log_pylint"):
        assert parse(name, f"PASSED {printed}\n") == {wanted: "PASSED"}


def test_version_2_reads_colours_and_verbose_lines() -> None:
    log = (
        "t.py::test_old PASSED\n"
        "t.py::test_blank[a b] FAILED\n"
        "\x1b[32mPASSED\x1b[0m t.py::\x1b[1mtest_new\x1b[0m\n"
        "\x1b[31mFAILED\x1b[0m t.py::\x1b[1mtest_red\x1b[0m - \x1b[1;31mE: 1\x1b[0m\n"
        "  indented PASSED\n"
    )
    assert parse("parse_log_pytest_v2", log) == {
        "t.py::test_old": "PASSED",
        "t.py::test_blank[a": "FAILED",
        "t.py::test_new": "PASSED",
        "t.py::test_red": "FAILED",
    }


def test_pydantic_reads_verbose_lines_with_progress() -> None:
    log = (
        "tests/test_main.py::test_a PASSED                      [  3%]\n"
        "tests/test_main.py::test_b[x] FAILED                   [100%]\n"
        "tests/test_main.py::test_c SKIPPED (needs email)       [ 99%]\n"
        "FAILED tests/test_main.py::test_d - assert 0\n"
    )
    assert parse("parse_log_pytest_pydantic", log) == {
        "tests/test_main.py::test_a": "PASSED",
        "tests/test_main.py::test_b[x]": "FAILED",
        "tests/test_main.py::test_d": "FAILED",
    }


SYMPY = """\
============================= test process starts ==============================
sympy/sets/tests/test_contains.py[7]
test_contains_basic ok
test_issue_6194 /testbed/sympy/x.py:1: SyntaxWarning: odd ok
test_known f
test_mended X
test_as_set E
test_wrong F
test_type_error ok                                                        [FAIL]

________________________________________________________________________________
___________ sympy/sets/tests/test_contains.py:test_as_set ______________________
Traceback (most recent call last):
  File "/testbed/sympy/sets/tests/test_contains.py", line 44, in test_as_set
NotImplementedError
 tests finished: 4 passed, 1 failed, 1 exceptions, in 0.02 seconds
DO *NOT* COMMIT!
"""


def test_sympy() -> None:
    assert parse("parse_log_sympy", SYMPY) == {
        "test_contains_basic": "PASSED",
        "test_issue_6194": "PASSED",
        "test_known": "XFAIL",
        "test_mended": "XPASS",
        "test_as_set": "ERROR",
        "test_wrong": "FAILED",
        "test_type_error": "PASSED",
        "sympy/sets/tests/test_contains.py:test_as_set": "FAILED",
    }


DJANGO = """\
Testing against Django installed in '/testbed/django' with up to 2 processes
test_a (m.tests.C) ... ok
test_b (m.tests.C) ... FAIL
test_c (m.tests.C) ... ERROR
test_d (m.tests.C) ... skipped 'no database'
test_e (m.tests.C) ... Internal Server Error: /x/
ok
test_f (m.tests.C) ... System check identified no issues (0 silenced).
Creating a table
ok
test_g (m.tests.C) ...  OK
A docstring of a test ... ok
test_h (m.tests.C) ... FAIL
okay, said the test that failed
======================================================================
FAIL: test_b (m.tests.C)
----------------------------------------------------------------------
"""


def test_django() -> None:
    assert parse("parse_log_django", DJANGO) == {
        "test_a (m.tests.C)": "PASSED",
        "test_b (m.tests.C)": "FAILED",
        "test_c (m.tests.C)": "ERROR",
        "test_d (m.tests.C)": "SKIPPED",
        "test_e (m.tests.C)": "PASSED",
        "test_f (m.tests.C)": "PASSED",
        "test_g (m.tests.C)": "PASSED",
        "A docstring of a test": "PASSED",
        "test_h (m.tests.C)": "FAILED",
        "test_b": "FAILED",
    }


def test_matplotlib_names_mouse_buttons_by_number() -> None:
    log = "PASSED t.py::test_click[MouseButton.LEFT]\nPASSED t.py::test_click[MouseButton.RIGHT]\n"
    assert parse("parse_log_matplotlib", log) == {
        "t.py::test_click[1]": "PASSED",
        "t.py::test_click[3]": "PASSED",
    }


def test_an_unknown_parser_is_refused_with_the_known_names() -> None:
    with pytest.raises(TaskError, match=r"no log parser 'parse_log_jest'.*parse_log_pytest,"):
        parser_named("parse_log_jest")


@pytest.mark.parametrize("name", sorted(PARSERS))
def test_no_log_is_too_odd(name: str) -> None:
    hostile = "\n".join(["", "PASSED", "FAILED -", " ... ", "test_ ", "_" * 3000, "[" * 3000, "\0"])
    parser_named(name)(hostile)
    started_s = time.perf_counter()
    parser_named(name)(("test_x " + "a [ " * 5000 + "\n") * 20)
    assert time.perf_counter() - started_s < 5, "time grows faster than the log"
