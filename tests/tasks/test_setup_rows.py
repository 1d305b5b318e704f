"""Rows that make their repository of their image's."""

from __future__ import annotations

from typing import Any

import pytest

from palestra.environment.sandboxes.protocol import SandboxLimits, SandboxSpec
from palestra.errors import TaskError
from palestra.records import HOST_IMAGE, Task
from palestra.tasks.patches import flaw_of_setup
from palestra.tasks.rows import task_from_row, task_to_row
from palestra.tasks.swegym import END_MARKER, START_MARKER

PATCH = """\
diff --git a/a.py b/a.py
index 1..2 100644
--- a/a.py
+++ b/a.py
@@ -1,3 +1,3 @@
 one
-two
+2
 three
"""
ROW: dict[str, Any] = {
    "instance_id": "thing__forge-1",
    "repo": "forge/thing",
    "base_commit": "ab" * 20,
    "problem_statement": "It breaks.",
    "setup_patch": PATCH,
    "patch": PATCH,
    "test_patch": "",
    "FAIL_TO_PASS": ["tests/test_a.py::test_one"],
    "PASS_TO_PASS": [],
    "image": "some/thing:1",
    "eval_script": f": '{START_MARKER}'\npytest tests/test_a.py\n: '{END_MARKER}'\n",
    "log_parser": "parse_log_pytest",
}


def _fields(task: Task) -> dict[str, Any]:
    return {name: getattr(task, name) for name in Task.__slots__ if name != "row"}


def test_a_setup_patch_comes_through_both_ways() -> None:
    task = task_from_row(ROW)
    assert task.setup_patch == PATCH
    assert task_to_row(task) == ROW
    unread = Task(**_fields(task))
    assert task_to_row(unread)["setup_patch"] == PATCH
    assert task_from_row(task_to_row(unread)) == task


def test_a_row_without_one_has_none() -> None:
    task = task_from_row({key: value for key, value in ROW.items() if key != "setup_patch"})
    assert task.setup_patch == ""
    assert "setup_patch" not in task_to_row(Task(**_fields(task)))


def test_the_sandbox_of_a_task_is_told() -> None:
    spec = SandboxSpec.for_task(task_from_row(ROW), SandboxLimits(), {})
    assert (spec.base_commit, spec.setup_patch) == (ROW["base_commit"], PATCH)


NEW = "diff --git a/n b/n\nnew file mode {mode}\n--- /dev/null\n+++ b/n\n@@ -0,0 +1 @@\n+x\n"
FLAWS = {
    "no diff": ("nothing to see", "names no file"),
    "no diff of git's": (PATCH.partition("\n")[2].partition("\n")[2], "no git diff"),
    "a cut hunk": (PATCH[:-8], "middle of a hunk"),
    "a zero byte": (PATCH.replace("2", "\0"), "not plain text"),
    "half a character": (PATCH.replace("2", "\ud800"), "not plain text"),
    "a path above": (PATCH.replace("a.py", "../a.py"), "'../a.py', which is no plain path"),
    "a path above, deep": (PATCH.replace("a.py", "b/../../a.py"), "no plain path"),
    "an absolute path": (PATCH.replace("a.py", "/etc/passwd"), "no plain path"),
    "git's own files": (PATCH.replace("a.py", ".git/config"), "no plain path"),
    "git's own files, shouted": (PATCH.replace("a.py", "sub/.GIT/config"), "no plain path"),
    "a quoted path": (PATCH.replace(" a/a.py b/a.py", ' "a/a\\tb.py" "b/a\\tb.py"'), "no plain"),
    "a link": (NEW.format(mode="120000"), "new file mode 120000"),
    "a submodule": (NEW.format(mode="160000"), "new file mode 160000"),
    "a binary file": ("diff --git a/n b/n\nGIT binary patch\nliteral 0\n", "GIT binary patch"),
    "a rename": (
        "diff --git a/a.py b/b.py\nsimilarity index 100%\nrename from a.py\nrename to b.py\n",
        "similarity index",
    ),
    "two names": (PATCH.replace("b/a.py", "b/b.py"), "cannot be read"),
}


@pytest.mark.parametrize(("patch", "said"), FLAWS.values(), ids=FLAWS)
def test_what_is_no_setup_patch_is_refused(patch: str, said: str) -> None:
    with pytest.raises(TaskError) as caught:
        task_from_row(ROW | {"setup_patch": patch})
    assert "thing__forge-1: field setup_patch" in caught.value.message
    assert said in caught.value.message


@pytest.mark.parametrize(
    "patch",
    [
        PATCH,
        PATCH + PATCH.replace("a.py", "b/.gitignore"),
        NEW.format(mode="100755"),
        "diff --git a/n b/n\ndeleted file mode 100644\n--- a/n\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n",
        "diff --git a/n b/n\nold mode 100644\nnew mode 100755\n",
        # What a line says is no header.
        PATCH.replace("+2", "+GIT binary patch").replace("-two", "-rename from a"),
        PATCH.replace(" a/a.py b/a.py", ' "a/caf\\303\\251.py" "b/caf\\303\\251.py"'),
    ],
)
def test_what_is_one_is_taken(patch: str) -> None:
    assert flaw_of_setup(patch) is None
    assert task_from_row(ROW | {"setup_patch": patch}).setup_patch == patch


@pytest.mark.parametrize("commit", ["HEAD", "abc123", "AB" * 20])
def test_the_commit_that_it_makes_is_named_in_full(commit: str) -> None:
    with pytest.raises(TaskError, match="field base_commit is no full commit id"):
        task_from_row(ROW | {"base_commit": commit})


@pytest.mark.parametrize(
    "own", [{"files": [{"path": "a.py", "text": "one\n"}]}, {"image": HOST_IMAGE}]
)
def test_a_row_that_brings_its_repository_has_none(own: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match="brings its own"):
        task_from_row(ROW | own)
