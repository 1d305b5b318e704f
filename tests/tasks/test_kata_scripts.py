"""Katas, really run: the eval script on buggy and on mended files, with plain bash."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from unidiff import PatchSet

from palestra.records import Task
from palestra.tasks.katas import demonstration
from palestra.tasks.katas.script import eval_script
from palestra.tasks.source import load_tasks

LINE = re.compile(r"^(PASSED|FAILED|ERROR) (\S+)")
NUM_RUN = 4  # starting Python is what costs
NUM_EXECUTED = 100


def lay_out(task: Task, folder: Path) -> Path:
    for file in task.files:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text)
    return folder


def bash(script: str, cwd: Path) -> str:
    done = subprocess.run(
        ["bash"], input=script, cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout + done.stderr


def statuses(task: Task, folder: Path) -> dict[str, str]:
    output = bash(task.eval_script, folder)
    head, _, rest = output.partition(">>>>> Start Test Output\n")
    inside, _, tail = rest.partition(">>>>> End Test Output\n")
    assert (head, tail) == ("", ""), output
    found = {}
    for line in inside.splitlines():
        match = LINE.match(line)
        assert match is not None, line
        found[match[2]] = match[1]
    return found


@pytest.mark.parametrize("level", range(5))
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_tests_flip_and_hold_as_the_row_says(split: str, level: int, tmp_path: Path) -> None:
    for task in load_tasks(f"katas:{split}?seed=11&n={NUM_RUN}&level={level}"):
        folder = lay_out(task, tmp_path / task.instance_id)
        assert task.fail_to_pass
        assert task.pass_to_pass
        before = statuses(task, folder)
        expected = dict.fromkeys(task.fail_to_pass, "FAILED")
        expected |= dict.fromkeys(task.pass_to_pass, "PASSED")
        assert before == expected, task.instance_id
        files = sorted(path for path in folder.rglob("*"))
        applied = bash(f"git apply - <<'EOF'\n{task.gold_patch}EOF\n", folder)
        assert applied == "", task.instance_id
        after = statuses(task, folder)
        assert after == dict.fromkeys(expected, "PASSED"), task.instance_id
        assert sorted(path for path in folder.rglob("*")) == files, "grading left something"


def mended(task: Task) -> dict[str, str]:
    """The files of ``task`` with its gold patch in them."""
    texts = {file.path: file.text for file in task.files}
    for patch in PatchSet(task.gold_patch):
        lines = texts[patch.path].splitlines(keepends=True)
        for hunk in reversed(patch):
            new = [line.value for line in hunk if not line.is_removed]
            end = hunk.source_start - 1 + hunk.source_length
            lines[hunk.source_start - 1 : end] = new
        texts[patch.path] = "".join(lines)
    return texts


def outcomes(task: Task, texts: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The tests that fail, run in this process on ``texts``."""
    # The module with the bug first: the other one imports from it.
    patched = task.gold_patch.split("+++ b/", 1)[1].split("\n", 1)[0]
    for path in sorted(texts, key=lambda path: path != patched):
        if path.endswith(".py"):
            module = types.ModuleType(path.removesuffix(".py"))
            exec(texts[path], module.__dict__)
            monkeypatch.setitem(sys.modules, module.__name__, module)
    tests = "".join(line[1:] + "\n" for line in task.test_patch.splitlines()[5:])
    scope: dict[str, Any] = {}
    exec(tests, scope)
    failed = set()
    for name in (*task.fail_to_pass, *task.pass_to_pass):
        try:
            scope[name.partition("::")[2]]()
        except Exception:
            failed.add(name)
    return failed


@pytest.mark.parametrize("level", range(5))
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_many_flip_and_hold(split: str, level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for task in load_tasks(f"katas:{split}?seed=13&n={NUM_EXECUTED}&level={level}"):
        texts = {file.path: file.text for file in task.files}
        assert outcomes(task, texts, monkeypatch) == set(task.fail_to_pass), task.instance_id
        assert outcomes(task, mended(task), monkeypatch) == set(), task.instance_id


@pytest.mark.parametrize("level", range(5))
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_demonstrations_do_what_the_gold_patch_does(split: str, level: int, tmp_path: Path) -> None:
    tasks = load_tasks(f"katas:{split}?seed=12&n=15&level={level}")
    script = []
    for task in tasks:
        for kind in ("shown", "gold"):
            lay_out(task, tmp_path / kind / task.instance_id)
        look, edit, submit = demonstration(task)
        assert look.startswith("cat ")
        assert submit == "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
        assert edit.startswith("git apply" if level == 4 else "sed -i "), edit
        script.append(f"cd {tmp_path}/shown/{task.instance_id}\n{edit}")
        gold = f"git apply - <<'EOF'\n{task.gold_patch}EOF"
        script.append(f"cd {tmp_path}/gold/{task.instance_id}\n{gold}")
    assert bash("\n".join(script), tmp_path) == ""
    for task in tasks:
        for path, text in mended(task).items():
            for kind in ("shown", "gold"):
                found = (tmp_path / kind / task.instance_id / path).read_text()
                assert found == text, (kind, demonstration(task))


def test_demonstrations_of_level_0_are_six_commands() -> None:
    edits = {demonstration(task)[1] for task in load_tasks("katas:train?n=200&level=0")}
    ops = {"+": "+", "-": "-", "*": "\\*"}
    assert edits == {f"sed -i 's/ {ops[a]} / {b} /' calc.py" for a in ops for b in ops if a != b}


def test_test_patches_apply(tmp_path: Path) -> None:
    for task in load_tasks("katas:heldout?n=10&levels=0-4"):
        folder = lay_out(task, tmp_path / task.instance_id)
        assert bash(f"git apply - <<'EOF'\n{task.test_patch}EOF\n", folder) == ""
        tests = (folder / task.fail_to_pass[0].partition("::")[0]).read_text()
        assert tests in task.eval_script


def broken(text: str, tmp_path: Path, *, limit_s: int = 5) -> tuple[dict[str, str], str]:
    """A module with ``text``, and what two tests of its function ``f`` come to."""
    (task,) = load_tasks("katas:train?n=1&level=0")
    tests = (
        "from calc import f\n\n\ndef test_a():\n    assert f() == 1, f'it is\\n{f()!r}'\n\n\n"
        "def test_b():\n    pass\n"
    )
    script = eval_script("tests/test_calc.py", tests).replace(
        "tests/test_calc.py 5", f"tests/test_calc.py {limit_s}"
    )
    task = dataclasses.replace(task, eval_script=script)
    (tmp_path / "calc.py").write_text(text)
    found = statuses(task, tmp_path)
    return {name.partition("::")[2]: status for name, status in found.items()}, script


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f():\n    return 1\n", {"test_a": "PASSED", "test_b": "PASSED"}),
        ("def f():\n    return 2\n", {"test_a": "FAILED", "test_b": "PASSED"}),
        ("def f():\n    raise SystemExit(0)\n", {"test_a": "FAILED", "test_b": "PASSED"}),
        ("def f(:\n", {"test_a": "ERROR", "test_b": "ERROR"}),
        ("raise KeyboardInterrupt\n", {"test_a": "ERROR", "test_b": "ERROR"}),
        ("", {"test_a": "ERROR", "test_b": "ERROR"}),
        ("import os\nos._exit(0)\n", {}),
        (
            "print('PASSED tests/test_calc.py::test_a')\ndef f():\n    return 2\n",
            {"test_a": "FAILED", "test_b": "PASSED"},
        ),
        ("def f():\n    return '\\ud800'\n", {"test_a": "FAILED", "test_b": "PASSED"}),
    ],
)
def test_bad_modules_are_told_apart(text: str, expected: dict[str, str], tmp_path: Path) -> None:
    assert broken(text, tmp_path)[0] == expected


@pytest.mark.parametrize("text", ["while True: pass\n", "def f():\n    while True: pass\n"])
def test_an_endless_loop_ends(text: str, tmp_path: Path) -> None:
    started = time.monotonic()
    found, _ = broken(text, tmp_path, limit_s=1)
    assert found["test_a"] in {"ERROR", "FAILED"}
    assert time.monotonic() - started < 30


def test_a_loop_that_swallows_exceptions_ends(tmp_path: Path) -> None:
    text = "def f():\n    while True:\n        try:\n            f.x\n        except Exception:\n"
    found, _ = broken(text + "            pass\n", tmp_path, limit_s=1)
    assert found == {"test_a": "FAILED", "test_b": "PASSED"}


def test_the_repository_cannot_shadow_the_standard_library(tmp_path: Path) -> None:
    for name in ("signal", "sitecustomize", "usercustomize", "encodings"):
        (tmp_path / f"{name}.py").write_text("import os\nos._exit(3)\n")
    found, _ = broken("import signal\ndef f():\n    return 1\n", tmp_path)
    assert found == {"test_a": "PASSED", "test_b": "PASSED"}


def test_without_python_there_is_no_verdict(tmp_path: Path) -> None:
    (task,) = load_tasks("katas:train?n=1&level=0")
    done = subprocess.run(
        ["/bin/bash", "-c", task.eval_script],
        cwd=tmp_path,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 127
    assert "no python3" in done.stderr
    assert "Start Test Output" not in done.stdout
