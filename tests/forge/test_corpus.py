"""Which projects are forged, how many tasks each gives and which are held out."""

from __future__ import annotations

from pathlib import Path

import pytest

from palestra.errors import HostError, TaskError
from palestra.forge.corpus import held_out, projects_of, quota


def test_lists_are_read_and_each_project_comes_once(tmp_path: Path) -> None:
    listed = tmp_path / "mine.txt"
    listed.write_text("# mine\ntoolz==1.0.0  # BSD\n\nparse==1.20.2\n")
    assert projects_of(["parse==1.20.2", str(listed), "./repo"]) == (
        "parse==1.20.2",
        "toolz==1.0.0",
        "./repo",
    )


def test_a_list_that_is_not_there_or_empty_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"nowhere\.txt"):
        projects_of([str(tmp_path / "nowhere.txt")])
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(TaskError, match="no project"):
        projects_of([str(tmp_path / "empty.txt")])


def test_what_a_project_lacks_the_others_make_up_for() -> None:
    assert quota(100, 0, 4) == 25
    assert quota(100, 10, 3) == 30
    assert quota(100, 40, 2) == 30
    assert quota(100, 120, 1) == 0


def test_held_out_projects_are_drawn_by_name_whatever_their_order() -> None:
    names = [f"p{i}" for i in range(10)]
    chosen = held_out(names, share=0.2, seed="0")
    assert len(chosen) == 2
    assert chosen == held_out(reversed(names), share=0.2, seed="0")
    assert held_out(names, share=0, seed="0") == frozenset()
    assert len(held_out(names[:3], share=0.1, seed="0")) == 1
