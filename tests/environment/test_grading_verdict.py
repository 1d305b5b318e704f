"""From statuses to a verdict, and from a log to the part between the markers."""

import dataclasses

import pytest
from grading_toys import toy_task

from palestra.environment.grading.markers import marked_output
from palestra.environment.grading.verdict import judge, unapplied
from palestra.records import Verdict

ONE, TWO, KEPT = (f"test_calc.py::test_{name}" for name in ("one", "two", "kept"))
GOOD = {ONE: "PASSED", TWO: "PASSED", KEPT: "PASSED"}


def verdict(statuses: dict[str, str], *, finished: bool = True) -> Verdict:
    return judge(toy_task(), statuses, finished=finished, log="log", duration_s=1.5)


def test_all_listed_tests_passed_is_resolved() -> None:
    got = verdict(GOOD | {"test_other.py::test": "FAILED"})
    assert got.resolved
    assert got.patch_applied
    assert got.fail_to_pass.success == (ONE, TWO)
    assert got.pass_to_pass.success == (KEPT,)
    assert got.fail_to_pass.failure == got.pass_to_pass.failure == ()
    assert (got.log, got.duration_s) == ("log", 1.5)


@pytest.mark.parametrize("status", ["FAILED", "ERROR", "SKIPPED", "XPASS", None])
@pytest.mark.parametrize("test", [ONE, TWO, KEPT])
def test_one_listed_test_that_did_not_pass_is_enough(test: str, status: str | None) -> None:
    statuses = {t: s for t, s in (GOOD | {test: status}).items() if s is not None}
    got = verdict(statuses)
    assert not got.resolved
    assert test in got.fail_to_pass.failure + got.pass_to_pass.failure
    assert len(got.fail_to_pass.success) + len(got.pass_to_pass.success) == 2


def test_an_id_that_is_listed_whole_is_found_by_its_beginning() -> None:
    whole = f"{ONE}[a b]"
    task = dataclasses.replace(toy_task(), fail_to_pass=(whole, TWO))
    cut = {TWO: "PASSED", KEPT: "PASSED", f"{ONE}[a": "PASSED"}
    assert judge(task, cut, finished=True, log="", duration_s=1).resolved
    bad = judge(task, cut | {f"{ONE}[a": "FAILED"}, finished=True, log="", duration_s=1)
    assert bad.fail_to_pass.failure == (whole,)
    exact = cut | {whole: "FAILED"}
    assert not judge(task, exact, finished=True, log="", duration_s=1).resolved


def test_an_expected_failure_passes() -> None:
    assert verdict(GOOD | {TWO: "XFAIL"}).resolved


def test_a_run_without_its_end_is_never_resolved() -> None:
    got = verdict(GOOD, finished=False)
    assert not got.resolved
    assert got.fail_to_pass.success == (ONE, TWO)


def test_a_patch_that_did_not_apply_fails_every_test() -> None:
    got = unapplied(toy_task(), log="why", duration_s=0.0)
    assert not got.resolved
    assert not got.patch_applied
    assert got.fail_to_pass.failure == (ONE, TWO)
    assert got.pass_to_pass.failure == (KEPT,)


START, END = ">>>>> Start Test Output", ">>>>> End Test Output"


@pytest.mark.parametrize("frame", ["+ : '{}'", "{}", "++ echo '{}'"])
def test_the_output_between_the_markers_is_cut_out(frame: str) -> None:
    log = f"before\n{frame.format(START)}\nPASSED a::b\n{frame.format(END)}\nafter\n"
    output = marked_output(log)
    assert output.started
    assert output.finished
    assert "PASSED a::b" in output.text.split("\n")
    assert "before" not in output.text
    assert "after" not in output.text


def test_missing_markers_are_told_apart() -> None:
    assert not marked_output("PASSED a::b\n").started
    cut = marked_output(f"{START}\nPASSED a::b\n")
    assert (cut.started, cut.finished) == (True, False)
    assert cut.text == "\nPASSED a::b\n"


def test_a_test_that_prints_the_end_marker_hides_nothing() -> None:
    output = marked_output(f"{START}\n{END}\nFAILED a::b\n{END}\n")
    assert "FAILED a::b" in output.text
