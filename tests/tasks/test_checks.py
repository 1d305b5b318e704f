"""Rows that cannot be right are refused as they are read, by id, field and reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from palestra.environment.grading.log_parsers import PARSERS
from palestra.errors import TaskError
from palestra.tasks.checks import LOG_PARSERS, files_run
from palestra.tasks.patches import PatchedFile, flaw, patched_files
from palestra.tasks.rows import task_from_row
from palestra.tasks.source import load_tasks
from palestra.tasks.swegym import END_MARKER, START_MARKER

PATCH = """\
diff --git a/a.py b/a.py
--- a/a.py
+++ b/a.py
@@ -1,3 +1,3 @@
 one
-two
+2
 three
"""
TEST_PATCH = PATCH.replace("a.py", "tests/test_a.py")


def script(tests: str) -> str:
    return f"cd /testbed\n: '{START_MARKER}'\n{tests}\n: '{END_MARKER}'\ngit checkout abc123 x\n"


PLAIN: dict[str, Any] = {
    "instance_id": "getmoto__moto-1",
    "repo": "getmoto/moto",
    "base_commit": "abc123",
    "problem_statement": "It breaks.",
    "patch": PATCH,
    "test_patch": TEST_PATCH,
    "FAIL_TO_PASS": ["tests/test_a.py::test_one"],
    "PASS_TO_PASS": ["tests/test_a.py::test_two"],
}
WHOLE = PLAIN | {
    "repo": "some/thing",
    "image": "some/thing:1",
    "eval_script": script("pytest -rA tests/test_a.py"),
    "log_parser": "parse_log_pytest",
}

BROKEN = {
    "no tests": ({"FAIL_TO_PASS": []}, "no FAIL_TO_PASS test"),
    "no tests at all": ({"FAIL_TO_PASS": [], "PASS_TO_PASS": []}, "no FAIL_TO_PASS test"),
    "lists that do not parse": ({"PASS_TO_PASS": "[1"}, "PASS_TO_PASS is a string but not the"),
    "lists in Python": ({"FAIL_TO_PASS": "['a']"}, "FAIL_TO_PASS is a string but not the"),
    "an id that is no text": ({"PASS_TO_PASS": [None]}, "PASS_TO_PASS is not a list of test ids"),
    "an empty id": ({"FAIL_TO_PASS": [""]}, "FAIL_TO_PASS holds '', which no test is called"),
    "a blank id": ({"PASS_TO_PASS": [" "]}, "PASS_TO_PASS holds ' ', which no test is called"),
    "an id of two lines": ({"PASS_TO_PASS": ["a\nb"]}, r"PASS_TO_PASS holds 'a\\nb'"),
    "an id of no file that is run": (
        {"FAIL_TO_PASS": ["tests/test_b.py::test_one"]},
        r"FAIL_TO_PASS holds 'tests/test_b.py::test_one', but .* are those of tests/test_a.py",
    ),
    "a patch that is none": ({"patch": "fix it"}, "patch is no unified diff"),
    "a patch that was cut": ({"patch": PATCH[:-8]}, "patch ends in the middle of a hunk"),
    "a patch of two, the first cut": (
        {"patch": PATCH.replace(" three\n", "") + PATCH},
        "patch ends a hunk too early at its line 8",
    ),
    "a hunk without a file": ({"patch": PATCH[PATCH.index("@@") :]}, "patch has a hunk of no file"),
    "a hunk header in pieces": (
        {"patch": PATCH.replace("@@ -1,3", "@@ -1;3")},
        "patch has a hunk that cannot be read at its line 4",
    ),
    "a test patch that was cut": (
        {"test_patch": TEST_PATCH[:-8]},
        "test_patch ends in the middle of a hunk",
    ),
    "a commit that is none": ({"base_commit": "not-a-commit"}, "base_commit is 'not-a-commit'"),
    "no commit": ({"base_commit": ""}, "base_commit is ''"),
    "a commit that is a command": ({"base_commit": "abc123; rm -rf /"}, "base_commit is"),
    "an image that is none": ({"image": "two words"}, "image is 'two words'"),
    "an option as image": ({"image": "--privileged"}, "image is '--privileged'"),
    "image of a wrong type": ({"image": ["a"]}, "image is a list"),
}
OF_WHOLE_ROWS = {
    "unknown parser": ({"log_parser": "parse_log_cobol"}, "log_parser is 'parse_log_cobol'; known"),
    "no parser": ({"log_parser": None}, "log_parser is missing"),
    "no markers": ({"eval_script": "pytest -rA\n"}, f"eval_script has no marker '{START_MARKER}'"),
    "no end marker": (
        {"eval_script": f"echo '{START_MARKER}'\npytest\n"},
        f"eval_script has no marker '{END_MARKER}'",
    ),
    "markers the wrong way round": (
        {"eval_script": f"echo '{END_MARKER}'\npytest\necho '{START_MARKER}'\n"},
        "eval_script prints its end marker before its start marker",
    ),
    "grading that is not known": ({"eval_type": "fail_only"}, "eval_type is 'fail_only'"),
}
CASES = [
    *(pytest.param(row | change, said, id=f"{kind}, {name}")
      for kind, row in (("plain", PLAIN), ("whole", WHOLE))
      for name, (change, said) in BROKEN.items()),
    *(pytest.param(WHOLE | change, said, id=name)
      for name, (change, said) in OF_WHOLE_ROWS.items()),
]  # fmt: skip


@pytest.mark.parametrize(("row", "said"), CASES)
def test_a_broken_row_is_refused_and_the_others_go_on(
    tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    bad = row | {"instance_id": "some__bad-7"}
    with pytest.raises(TaskError, match=rf"^some__bad-7: (field )?{said}"):
        task_from_row(bad)
    path = tmp_path / "t.jsonl"
    path.write_text(
        "".join(json.dumps(one) + "\n" for one in (PLAIN, bad, WHOLE | {"instance_id": "x"}))
    )
    reports: list[str] = []
    tasks = load_tasks(str(path), on_bad_row="skip", report=reports.append)
    assert [task.instance_id for task in tasks] == ["getmoto__moto-1", "x"]
    assert len(reports) == 1
    assert f"skipped: {path}:2: some__bad-7: " in reports[0]


@pytest.mark.parametrize("row", [PLAIN, WHOLE], ids=["plain", "whole"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"patch": ""},
        {"patch": "diff --git a/x b/y\nsimilarity index 100%\nrename from x\nrename to y\n"},
        {"patch": "diff --git a/x b/x\nold mode 100644\nnew mode 100755\n"},
        {"patch": PATCH.rstrip("\n")},
        {"patch": PATCH.replace(" three\n", "\n")},  # editors take blanks at line ends away
        {"patch": PATCH.replace("+2\n", "+2\n\\ No newline at end of file\n").replace(
            "@@ -1,3 +1,3 @@\n one\n-two", "@@ -1,3 +1,3 @@ def f():\n one\n-two")},
        {"patch": "From 1\nSubject: x\n\n" + PATCH + "-- \n2.39\n"},
        {"patch": PATCH.replace("\n", "\r\n")},
        {"patch": PATCH.partition("\n")[2]},
        {"patch": PATCH.replace("+2", "+diff --git \u2028@@ -a\x0cb")},
        {"FAIL_TO_PASS": ["tests/test_a.py::test_one[a"]},
        {"FAIL_TO_PASS": ["test_a (module.Class)"]},
        {"base_commit": "HEAD"},
        {"base_commit": "a" * 40},
        {"image": "host.org:5000/a/b_c:latest"},
        {"image": "a/b@sha256:" + "0" * 64},
    ],
)  # fmt: skip
def test_odd_rows_that_may_be_right_are_kept(row: dict[str, Any], change: dict[str, Any]) -> None:
    assert task_from_row(row | change).instance_id == "getmoto__moto-1"


def test_every_parser_of_the_grader_may_be_named_and_no_other() -> None:
    assert frozenset(PARSERS) == LOG_PARSERS


@pytest.mark.parametrize(
    ("tests", "files"),
    [
        ("pytest -n0 -rA tests/test_a.py tests/b.py", ("tests/test_a.py", "tests/b.py")),
        ("pytest -n 4 -k 'a or b' --tb=long x.py", ("x.py",)),
        ("pytest -rA --tb=short -vv -o console_output_style=classic --no-header x.py", ("x.py",)),
        ("pytest -rA tests/", None),
        ("pytest -rA", None),
        ("pytest -n0 -rA -k 'caseA or caseB'", None),
        ("pytest -rA x.py::test_one", None),
        ("cd sub\npytest x.py", None),
        ("pytest x.py; pytest y.py", None),
        ("bin/test -C --verbose sympy/x.py", None),
        ("PYTHONPATH=. pytest x.py", None),
        ("pytest 'x.py", None),
        ("pytest $FILES", None),
        ("", None),
    ],
)
def test_what_is_plain_to_be_run(tests: str, files: tuple[str, ...] | None) -> None:
    assert files_run(script(tests)) == files


def test_a_package_stands_for_its_files() -> None:
    row = WHOLE | {
        "eval_script": script("pytest -rA tests/__init__.py"),
        "FAIL_TO_PASS": ["tests/sub/test_c.py::test_c"],
    }
    assert task_from_row(row).fail_to_pass == ("tests/sub/test_c.py::test_c",)


def test_names_in_headers_are_read_as_git_means_them() -> None:
    head = 'diff --git "a/t\\303\\251 \\"q\\".py" "b/t\\303\\251 \\"q\\".py"\n'
    assert patched_files(head) == (PatchedFile(before='té "q".py', after='té "q".py'),)
    renamed = 'diff --git a/plain.py "b/t\\tx.py"\nrename from plain.py\nrename to "t\\tx.py"\n'
    assert patched_files(renamed) == (PatchedFile(before="plain.py", after="t\tx.py"),)


def test_only_line_feeds_end_a_line_of_a_patch() -> None:
    patch = PATCH.replace("+2", "+2\x0cdiff --git a/x b/x\u2028--- /dev/null")
    assert patched_files(patch) == (PatchedFile(before="a.py", after="a.py"),)
    assert flaw(patch) is None
