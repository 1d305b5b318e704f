"""What an expert does to a file is what the gold patch does, whatever stands in it."""

from __future__ import annotations

import dataclasses
import difflib
import random
import subprocess
from pathlib import Path

import pytest

from palestra.errors import TaskError
from palestra.records import Task
from palestra.tasks.demonstrations import SUBMIT, expert_steps
from palestra.tasks.katas.draw import Draw

LINES = (
    "def clamp(value, low, high):",
    "    if value < low and value != 0:",
    "\treturn low  # a tab",
    r'    return "a\n" + r"\d+/.*[x]$^&"',
    "",
    "    # it's 100% 'quoted' & \\",
    "class Thing:",
    "\\ a backslash first",
    "é ü 漢字",
)


def task_of(before: dict[str, str], after: dict[str, str]) -> Task:
    patch = ""
    for path in sorted({*before, *after}):
        old, new = before.get(path, ""), after.get(path, "")
        if old != new:
            names = (f"a/{path}", f"b/{path}") if path in before else ("/dev/null", f"b/{path}")
            patch += f"diff --git a/{path} b/{path}\n"
            patch += "" if path in before else "new file mode 100644\n"
            patch += "".join(
                difflib.unified_diff(old.splitlines(True), new.splitlines(True), *names)
            )
    return Task(
        instance_id="t__1",
        repo="r",
        base_commit="HEAD",
        problem_statement="It is wrong.",
        image="i",
        fail_to_pass=("t.py::t",),
        pass_to_pass=(),
        gold_patch=patch,
        test_patch="",
        eval_script="",
        log_parser="parse_log_pytest",
    )


def follow(folder: Path, before: dict[str, str], task: Task) -> dict[str, str]:
    """The files after the expert's commands."""
    for path, text in before.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    subprocess.run(["git", "init", "-q", folder], check=True)
    for step in expert_steps(task):
        done = subprocess.run(
            ["bash", "-c", step.command], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{step.command}\n{done.stdout}{done.stderr}"
    files = (path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts)
    return {str(path.relative_to(folder)): path.read_text() for path in files}


@pytest.mark.parametrize("seed", range(25))
def test_drawn_changes_are_made_exactly(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    lines = [draw.choice(LINES) for _ in range(draw.randint(1, 40))]
    changed = list(lines)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(changed) + 1)
        new = [draw.choice(LINES) for _ in range(draw.randint(0, 3))]
        changed[place : place + draw.randint(0, 2)] = new
    before, after = ({"m.py": "".join(f"{line}\n" for line in some)} for some in (lines, changed))
    if before == after or not changed:
        pytest.skip("drawn without a change")
    assert follow(tmp_path, before, task_of(before, after)) == after


def test_several_files_and_a_new_one(tmp_path: Path) -> None:
    before = {"a b.py": "one\ntwo\n", "pkg/c.py": "x = 1\n"}
    after = {"a b.py": "one\n2\n", "pkg/c.py": "x = 2\ny = 3\n", "pkg/new.py": "z = 1\n"}
    assert follow(tmp_path, before, task_of(before, after)) == after


def test_an_expert_looks_before_and_hands_in_last() -> None:
    text = "def area(w, h):\n    return w + h\n"
    task = task_of({"shapes.py": text}, {"shapes.py": text.replace("+", "*")})
    steps = expert_steps(task)
    commands = [step.command for step in steps]
    assert "area" in commands[1]
    assert commands[-3] == "sed -i '2s/ + / * /' shapes.py"
    assert commands[-1] == SUBMIT
    assert len({(step.thought, step.command) for step in steps}) == len(steps)


def test_a_task_without_a_readable_patch_is_refused() -> None:
    with pytest.raises(TaskError, match="t__1"):
        expert_steps(task_of({"a.py": "x\n"}, {"a.py": "x\n"}))


def test_an_expert_by_trial_takes_wrong_edits_back_and_sees_the_right_one_work(
    tmp_path: Path,
) -> None:
    text = "def area(w, h):\n    if w < 0 or h < 0:\n        return 0\n    return w + h\n"
    mended = text.replace("+", "*")
    statement = (
        "# Wrong area\n\n```python\nfrom shapes import area\n\narea(3, 5)\n```\n\nI get 8.\n"
    )
    task = dataclasses.replace(
        task_of({"shapes.py": text}, {"shapes.py": mended}), problem_statement=statement
    )
    steps = expert_steps(task, num_slips=2, by_trial=Draw("d"))
    (tmp_path / "shapes.py").write_text(text)
    for words in ("init -q", "add -A", "-c user.name=a -c user.email=a@b commit -qm start"):
        subprocess.run(["git", *words.split()], cwd=tmp_path, check=True)
    said = []
    for step in steps:
        done = subprocess.run(
            ["bash", "-c", step.command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        said.append(done.stdout)
        if step.is_slip:
            assert (tmp_path / "shapes.py").read_text() not in (text, mended), step.command
    assert (tmp_path / "shapes.py").read_text() == mended
    assert sum(step.is_slip for step in steps) == 2
    runs = [out for step, out in zip(steps, said, strict=True) if "<<'END'" in step.command]
    assert (runs[0], runs[-1]) == ("8\n", "15\n")
    assert len(runs) == 4, "once before, after each slip, and at the end"


@pytest.mark.parametrize("shown", ["", "```python\nx = (\n```\n", "```python\narea(3, 5)\n```\n"])
def test_without_a_program_that_runs_nothing_is_tried(shown: str) -> None:
    text = "def area(w, h):\n    return w + h\n"
    task = task_of({"shapes.py": text}, {"shapes.py": text.replace("+", "*")})
    task = dataclasses.replace(task, problem_statement=f"It is wrong.\n\n{shown}")
    assert expert_steps(task, num_slips=2, by_trial=Draw("d")) == expert_steps(task)
