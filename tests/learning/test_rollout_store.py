from __future__ import annotations

from pathlib import Path

import pytest
from rollout_makers import make_group

from palestra.config import RolloutsSection
from palestra.errors import HostError
from palestra.learning.rollouts.filters import DropReason, judge
from palestra.learning.rollouts.store import RolloutStore
from palestra.records import Outcome

SOLVED, UNSOLVED, INFRA = Outcome.SOLVED, Outcome.UNSOLVED, Outcome.INFRA_ERROR


def test_everything_comes_back_with_what_became_of_it(tmp_path: Path) -> None:
    store = RolloutStore(tmp_path / "rollouts")
    groups = [
        make_group([SOLVED, UNSOLVED, INFRA], index=4, versions=(0, 1)),
        make_group([SOLVED, SOLVED], index=5),
    ]
    judged = [judge(g, version=1, section=RolloutsSection(max_off_policy_steps=1)) for g in groups]
    path = store.write(3, judged)
    assert path.name == "3.jsonl.zst"
    stored = list(store.read(3))
    assert [s.rollout for s in stored] == [r for g in groups for r in g.rollouts]
    assert [s.trained for s in stored] == [True, True, False, False, False]
    assert [s.drop_reason for s in stored] == [None] * 3 + [DropReason.ALL_EQUAL] * 2
    assert {(s.step, s.group_id, s.task_index) for s in stored} == {
        (3, "run-4", 4),
        (3, "run-5", 5),
    }


def test_steps_beyond_the_checkpoint_are_set_aside_and_kept(tmp_path: Path) -> None:
    store = RolloutStore(tmp_path)
    for step in (1, 2, 10):
        store.write(step, [])
    (tmp_path / "11.jsonl.tmp").write_bytes(b"torn")
    moved = store.set_aside(after_step=1)
    assert sorted(p.name for p in moved) == [
        "10.jsonl.zst.1.discarded",
        "2.jsonl.zst.1.discarded",
    ]
    assert store.steps() == [1]
    assert not list(tmp_path.glob("*.tmp"))
    store.write(2, [])
    assert [p.name for p in store.set_aside(after_step=1)] == ["2.jsonl.zst.2.discarded"]
    assert store.set_aside(after_step=1) == []


def test_setting_aside_where_nothing_is(tmp_path: Path) -> None:
    assert RolloutStore(tmp_path / "none").set_aside(after_step=0) == []


def test_trouble_is_one_line(tmp_path: Path) -> None:
    store = RolloutStore(tmp_path)
    with pytest.raises(HostError, match="cannot read the rollouts"):
        list(store.read(1))
    store.path(1).write_bytes(b"no zstandard at all")
    with pytest.raises(HostError, match="cannot read the rollouts"):
        list(store.read(1))
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="cannot write the rollouts"):
        RolloutStore(tmp_path / "file").write(1, [])
