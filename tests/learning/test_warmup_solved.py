"""A warm start from an earlier run takes what solved its task, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from rollout_makers import make_group

from palestra.config import RolloutsSection
from palestra.errors import ConfigError
from palestra.learning.rollouts.filters import judge
from palestra.learning.rollouts.store import RolloutStore
from palestra.records import Outcome
from palestra.run.warmup import solved_paths

SOLVED, UNSOLVED, INFRA = Outcome.SOLVED, Outcome.UNSOLVED, Outcome.INFRA_ERROR


def stored(folder: Path, *groups: list[Outcome]) -> None:
    for step, outcomes in enumerate(groups, start=1):
        group = judge(make_group(outcomes, index=step), version=0, section=RolloutsSection())
        RolloutStore(folder / "rollouts").write(step, [group])


def test_solved_rollouts_of_all_steps_count_also_of_dropped_groups(tmp_path: Path) -> None:
    stored(tmp_path, [SOLVED, UNSOLVED, INFRA], [SOLVED, SOLVED], [UNSOLVED, UNSOLVED])
    paths = solved_paths(tmp_path, vocab_size=1 << 20)
    one = make_group([SOLVED]).rollouts[0].trace.paths()
    assert len(paths) == 3 * len(one)
    assert all(any(path.trainable) for path in paths)


def test_a_run_that_solved_nothing_is_refused(tmp_path: Path) -> None:
    stored(tmp_path, [UNSOLVED, INFRA])
    with pytest.raises(ConfigError, match="no rollout in"):
        solved_paths(tmp_path, vocab_size=1 << 20)
    with pytest.raises(ConfigError, match="no rollout in"):
        solved_paths(tmp_path / "nowhere", vocab_size=1 << 20)


def test_ids_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    stored(tmp_path, [SOLVED])
    with pytest.raises(ConfigError, match="another tokenizer"):
        solved_paths(tmp_path, vocab_size=2)
