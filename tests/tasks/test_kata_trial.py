"""Demonstrations with wrong edits solve their katas, and their slips are marked as such."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from palestra.records import Task
from palestra.tasks.katas import tried_demonstration
from palestra.tasks.katas.draw import Draw
from palestra.tasks.source import load_tasks


def katas(level: int) -> list[Task]:
    return list(load_tasks(f"katas:train?seed=5&n=6&level={level}"))


def laid_out(task: Task, folder: Path) -> Path:
    for file in task.files:
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / file.path).write_text(file.text)
    for command in ("init -q", "add -A", "-c user.name=a -c user.email=a@b commit -qm start"):
        subprocess.run(["git", *command.split()], cwd=folder, check=True, timeout=60)
    return folder


def run(command: str, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_the_last_check_says_what_the_first_wrong_one_does_not(level: int, tmp_path: Path) -> None:
    called = [task for task in katas(level) if "; expected `" in task.problem_statement]
    assert len(called) >= 4, "hardly an issue names a call"
    for number, task in enumerate(called):
        moves = tried_demonstration(task, num_slips=2, draw=Draw(f"d {number}"))
        folder = tmp_path / str(number)
        laid_out(task, folder)
        said = [run(move.command, folder) for move in moves]
        checks = [text for move, text in zip(moves, said, strict=True) if "<<'END'" in move.command]
        expected = task.problem_statement.split("; expected `")[-1].split("`")[0]
        assert checks, task.problem_statement
        assert checks[-1].strip() == expected, (task.problem_statement, moves)
        assert "error:" not in "".join(said), said
        changed = run("git diff --numstat", folder)
        mended = subprocess.run(
            ["git", "apply", "--check", "-R"],
            cwd=folder,
            input=task.gold_patch,
            text=True,
            timeout=60,
            check=False,
        )
        assert mended.returncode == 0, f"something else than the fix is left: {changed}"


def test_slips_are_marked_and_taken_back() -> None:
    (task, *_) = katas(1)
    moves = tried_demonstration(task, num_slips=2, draw=Draw("d"))
    slips = [turn for turn, move in enumerate(moves) if move.is_slip]
    assert slips == [1, 4]
    assert moves[slips[0]] != moves[slips[1]]
    for turn in slips:
        assert not moves[turn + 1].is_slip
        assert moves[turn + 2].command.startswith("git checkout ")
    assert [m.is_slip for m in tried_demonstration(task, num_slips=0, draw=Draw("d"))] == [
        False
    ] * 4


def test_an_issue_without_a_call_is_shown_without_slips() -> None:
    (task, *_) = load_tasks("katas:train?seed=5&n=1&level=0")
    moves = tried_demonstration(task, num_slips=3, draw=Draw("d"))
    assert len(moves) == 3
    assert not any(move.is_slip for move in moves)
