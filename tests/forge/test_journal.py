"""What was tried is known after a crash, under the same conditions only."""

from __future__ import annotations

from pathlib import Path

from palestra.forge.journal import Journal, Tried

REFUSED = Tried(key="a.py:1", reason="no test fails")
TASK = Tried(key="a.py:2", row={"instance_id": "x"}, certificate={"status": "c"}, failing=("t",))


def test_what_was_noted_is_found_by_the_next(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "toy", {"seed": "0"})
    journal.note(REFUSED)
    journal.note(TASK)
    again = Journal(tmp_path, "toy", {"seed": "0"})
    assert again.find("a.py:1") == REFUSED
    assert again.find("a.py:2") == TASK
    assert again.find("a.py:3") is None


def test_other_conditions_have_another_journal(tmp_path: Path) -> None:
    Journal(tmp_path, "toy", {"seed": "0"}).note(REFUSED)
    assert Journal(tmp_path, "toy", {"seed": "1"}).find("a.py:1") is None


def test_a_torn_line_is_passed_over_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    Journal(tmp_path, "toy", {}).note(REFUSED)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    after = Journal(tmp_path, "toy", {})
    assert after.find("a.py:1") is None
    after.note(TASK)
    assert Journal(tmp_path, "toy", {}).find("a.py:2") == TASK
