"""Every kind of row becomes a Task, and a broken one says what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from palestra.errors import TaskError
from palestra.records import Task
from palestra.tasks.describe import summarize
from palestra.tasks.miles import from_prompt_data
from palestra.tasks.rows import task_from_row, task_to_row
from palestra.tasks.swegym import END_MARKER, START_MARKER

DATA = Path(__file__).parents[3] / "shared" / "data"
TEST_PATCH = """\
diff --git a/tests/test_a.py b/tests/test_a.py
--- a/tests/test_a.py
+++ b/tests/test_a.py
@@ -1 +1,2 @@
 import a
+import b
"""
PLAIN = {
    "instance_id": "getmoto__moto-1",
    "repo": "getmoto/moto",
    "base_commit": "abc123",
    "problem_statement": "It breaks.",
    "patch": "diff --git a/a.py b/a.py\n",
    "test_patch": TEST_PATCH,
    "FAIL_TO_PASS": ["tests/test_a.py::test_one"],
    "PASS_TO_PASS": ["tests/test_a.py::test_two"],
    "version": "5.0",
}
SCRIPT = f"echo '{START_MARKER}'\necho hello\necho '{END_MARKER}'\n"
SCRIPTED = PLAIN | {
    "repo": "somebody/something",
    "image": "registry/some:image",
    "eval_script": SCRIPT,
    "log_parser": "parse_log_pytest",
    "eval_type": "pass_and_fail",
}


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in names}


def test_a_plain_row_gets_image_script_and_parser_from_the_table() -> None:
    task = task_from_row(PLAIN)
    assert task.image == "xingyaoww/sweb.eval.x86_64.getmoto_s_moto-1:latest"
    assert "pytest -n0 -rA tests/test_a.py" in task.eval_script
    assert task.log_parser == "parse_log_pytest"
    assert (task.subset, task.split) == ("gym", "train")
    assert task_to_row(task) == PLAIN


def test_json_strings_are_read_and_kept_as_they_are() -> None:
    row = PLAIN | {key: json.dumps(PLAIN[key]) for key in ("FAIL_TO_PASS", "PASS_TO_PASS")}
    task = task_from_row(row)
    assert task.fail_to_pass == ("tests/test_a.py::test_one",)
    assert task.pass_to_pass == ("tests/test_a.py::test_two",)
    assert task_to_row(task) == row


def test_a_row_with_a_script_keeps_it() -> None:
    task = task_from_row(SCRIPTED)
    assert (task.eval_script, task.image) == (SCRIPT, "registry/some:image")


@pytest.mark.parametrize("name", ["image", "image_name"])
@pytest.mark.parametrize("row", [PLAIN, without(SCRIPTED, "image")], ids=["plain", "scripted"])
def test_the_image_of_the_row_wins(row: dict[str, Any], name: str) -> None:
    assert task_from_row(row | {name: "mine:1"}).image == "mine:1"


def test_a_scripted_row_without_image_gets_the_one_of_swebench() -> None:
    row = without(SCRIPTED, "image") | {"instance_id": "Psf__requests-1"}
    assert task_from_row(row).image == "swebench/sweb.eval.x86_64.psf_1776_requests-1:latest"


def test_a_swebench_row_without_script_says_what_is_missing() -> None:
    row = PLAIN | {"instance_id": "psf__requests-1142", "repo": "psf/requests"}
    with pytest.raises(TaskError, match=r"psf__requests-1142.*no eval_script.*'psf/requests'"):
        task_from_row(row)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"FAIL_TO_PASS": []}, "getmoto__moto-1.*FAIL_TO_PASS"),
        ({"FAIL_TO_PASS": "[]"}, "getmoto__moto-1.*FAIL_TO_PASS"),
        ({"FAIL_TO_PASS": "['a']"}, "getmoto__moto-1: field FAIL_TO_PASS.*JSON"),
        ({"PASS_TO_PASS": '{"a": 1}'}, "getmoto__moto-1: field PASS_TO_PASS.*list"),
        ({"PASS_TO_PASS": [1]}, "getmoto__moto-1: field PASS_TO_PASS.*list"),
        ({"PASS_TO_PASS": None}, "getmoto__moto-1: field PASS_TO_PASS is missing"),
        ({"patch": None}, "getmoto__moto-1: field patch is missing"),
        ({"problem_statement": 3}, "getmoto__moto-1: field problem_statement is a int"),
        ({"test_patch": "no diff"}, "getmoto__moto-1: test_patch touches no test file"),
        ({"workdir": "testbed"}, "getmoto__moto-1: workdir"),
        ({"image": 3}, "getmoto__moto-1: field image is a int"),
        ({"files": "x"}, "getmoto__moto-1: field files is not a list"),
        ({"files": [{"path": "../x", "text": ""}]}, "getmoto__moto-1: field files.*inside"),
        ({"files": [{"path": "x"}]}, "getmoto__moto-1: field files.*text"),
        ({"instance_id": ""}, "no instance_id"),
        ({"instance_id": 7}, "no instance_id"),
    ],
)
def test_a_broken_row_names_id_and_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        task_from_row(PLAIN | change)


@pytest.mark.parametrize("name", ["log_parser", "repo", "base_commit"])
def test_a_scripted_row_without_a_field_names_it(name: str) -> None:
    with pytest.raises(TaskError, match=f"getmoto__moto-1: field {name} is missing"):
        task_from_row(without(SCRIPTED, name))


def test_an_unknown_eval_type_is_an_error() -> None:
    with pytest.raises(TaskError, match="eval_type is 'guess'"):
        task_from_row(SCRIPTED | {"eval_type": "guess"})


def test_a_task_without_a_row_writes_one_that_reads_the_same() -> None:
    row = SCRIPTED | {"files": [{"path": "a.py", "text": "a\n"}]}
    task = task_from_row(row)
    bare = Task(
        **{name: getattr(task, name) for name in Task.__dataclass_fields__ if name != "row"}
    )
    assert task_from_row(task_to_row(bare)) == task


def test_a_summary_counts() -> None:
    tasks = [
        task_from_row(PLAIN),
        task_from_row(PLAIN | {"instance_id": "getmoto__moto-2", "patch": ""}),
        task_from_row(SCRIPTED | {"instance_id": "x"}),
    ]
    summary = summarize(tasks)
    assert summary.num_tasks == 3
    assert summary.repos == (("getmoto/moto", 2), ("somebody/something", 1))
    assert (summary.num_fail_to_pass, summary.num_without_gold_patch) == (3, 1)
    assert summary.lines()[0] == "3 tasks, 3 images"


def shared_rows(name: str) -> list[dict[str, Any]]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [from_prompt_data(json.loads(line)) for line in lines]


@pytest.mark.parametrize(
    "name", ["swegym.jsonl", "runnable.jsonl", "gym_request_mini_swe_agent.jsonl"]
)
def test_real_rows_are_tasks(name: str) -> None:
    for row in shared_rows(name):
        task = task_from_row(row)
        assert task_to_row(task) == row
        assert ">>>>> Start Test Output" in task.eval_script


def test_real_rows_of_swebench_without_a_script_are_refused_by_name() -> None:
    for row in shared_rows("swebench_lite_dev.jsonl"):
        with pytest.raises(TaskError, match=row["instance_id"]):
            task_from_row(row)


def test_our_scripts_run_the_same_tests_as_the_ones_that_real_rows_bring() -> None:
    seen = 0
    for row in shared_rows("runnable.jsonl"):
        if row["subset"] != "gym":
            continue
        ours = task_from_row(without(row, "eval_script", "image", "image_name"))
        assert ours.image == row["image"]
        assert ours.log_parser == row["log_parser"]
        for line in row["eval_script"].splitlines():
            if line.startswith(("pytest", "git checkout", "git apply", "export")):
                assert line in ours.eval_script.splitlines(), line
        seen += 1
    assert seen == 5
