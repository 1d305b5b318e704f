"""The comparison with the swebench harness: halves of patches, and what counts as a difference."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from grading_parity.compare import Key, Report, beside, differences, of_swebench, table
from grading_parity.half_patches import half_patch

BEFORE = "".join(f"line {n}\n" for n in range(30))
KEY = Key(instance_id="a__b-1", variant="gold")


def git(folder: Path, *args: str, patch: str | None = None) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *args],
        cwd=folder,
        input=patch,
        text=True,
        capture_output=True,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    ("edits", "num_left"),
    [
        ({"a.txt": {2: "two"}, "b.txt": {3: "three", 4: "four"}}, 2),
        ({"a.txt": {2: "two", 20: "twenty", 21: "more"}}, 2),
        ({"a.txt": {2: "two", 3: "three"}}, 2),
        ({"a.txt": {2: "two"}}, 1),
    ],
    ids=["minus a file", "minus a hunk", "minus lines", "one line"],
)
def test_half_a_patch_still_applies(
    tmp_path: Path, edits: dict[str, dict[int, str]], num_left: int
) -> None:
    git(tmp_path, "init", "-q")
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(BEFORE)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "base")
    for name, lines in edits.items():
        text = BEFORE
        for number, new in lines.items():
            text = text.replace(f"line {number}\n", f"{new}\n")
        (tmp_path / name).write_text(text)
    gold = git(tmp_path, "diff")
    git(tmp_path, "checkout", "-q", ".")
    half = half_patch(gold)
    git(tmp_path, "apply", "-", patch=half)
    changed = [
        x for x in git(tmp_path, "diff").splitlines() if x[:1] in "+-" and x[1:2] not in "+-"
    ]
    assert len(changed) == num_left
    assert half != gold


def test_a_patch_without_hunks_has_no_half() -> None:
    with pytest.raises(ValueError, match="hunks"):
        half_patch("")


def report(*, resolved: bool = True, one: bool = True, status: str = "PASSED") -> Report:
    return Report(
        grader="ours",
        resolved=resolved,
        listed={("FAIL_TO_PASS", "t::one"): one},
        statuses={"t::one": status},
    )


def test_equal_reports_do_not_differ() -> None:
    line = {
        "instance_id": "a__b-1",
        "variant": "gold",
        "swebench": "5",
        "report": {
            "resolved": True,
            "tests_status": {"FAIL_TO_PASS": {"success": ["t::one"], "failure": []}},
        },
        "statuses": {"t::one": "PASSED"},
    }
    key, theirs = of_swebench(line)
    assert key == KEY
    assert differences(theirs, report()) == ()
    assert table({key: theirs}, {key: [report(), report()]}).splitlines()[-1] == (
        "| a__b-1 | gold | 1 resolved | 2 resolved | 1 | 1 | 0 |"
    )


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (report(resolved=False), "resolved: True there, False here"),
        (report(one=False), "FAIL_TO_PASS t::one: success there, failure here"),
        (report(status="XPASS"), "t::one: PASSED there, XPASS here"),
    ],
)
def test_each_difference_is_named(other: Report, word: str) -> None:
    assert differences(report(), other) == (word,)


def test_a_harness_that_saw_no_test_means_that_none_passed() -> None:
    line = {"instance_id": "a", "variant": "half", "swebench": "5", "report": None, "statuses": {}}
    _, theirs = of_swebench(line)
    failed = Report(grader="o", resolved=False, listed={("FAIL_TO_PASS", "t"): False}, statuses={})
    assert differences(theirs, failed) == ()
    assert differences(theirs, report(resolved=False)) != ()


def test_what_no_list_names_is_told_apart() -> None:
    noisy = replace(report(), statuses={"t::one": "PASSED", "noise": "ERROR"})
    assert differences(noisy, report()) == ()
    assert beside(noisy, report()) == ("noise: ERROR there, absent here",)
