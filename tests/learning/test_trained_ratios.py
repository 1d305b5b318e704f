"""The importance ratio of each trained id, by rollout and in the order of its paths."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from training_toys import random_groups, rollout, sibling_groups, tiny_model, trainer_at, turn

from palestra.learning.rollouts.filters import JudgedGroup
from palestra.learning.rollouts.store import RolloutStore
from palestra.records import Group, Outcome, Rollout, Segment, Turn

SHIFT = 0.5


def shifted(one: Turn, place: int) -> Turn:
    """The same turn, of which the engine says that one id was less likely."""
    (segment,) = one.segments
    logprobs = list(segment.logprobs)
    logprobs[place] -= SHIFT
    changed = Segment(ids=segment.ids, logprobs=tuple(logprobs), policy_version=0)
    return dataclasses.replace(one, segments=(changed,))


def branched(name: str, outcome: Outcome) -> Rollout:
    """Two branches that share their first turn."""
    turns = [
        turn(0, [1, 2, 3], [4, 5]),
        turn(1, [6], [7, 8, 9], parent=0),
        turn(2, [10, 11], [12], parent=0),
    ]
    return rollout(name, outcome, turns)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("minibatches", [1, 2])
def test_each_ratio_is_of_its_own_id(tmp_path: Path, layout: str, minibatches: int) -> None:
    groups = [*random_groups(1), *sibling_groups(2)]
    pair = tuple(branched(f"b{n}", o) for n, o in enumerate((Outcome.SOLVED, Outcome.UNSOLVED)))
    groups.append(Group(group_id="b", instance_id="t", task_index=9, rollouts=pair))
    folder = tiny_model(tmp_path / "model")

    def ratios(groups: list[Group]) -> dict[str, tuple[float, ...]]:
        trainer = trainer_at(folder, layout=layout, minibatches=minibatches)
        assert trainer.ratios == {}
        trainer.train_step(groups)
        return {name: tuple(found) for name, found in trainer.ratios.items()}

    before = ratios(groups)
    for group in groups:
        for one in group.rollouts:
            num_trained = sum(sum(path.trainable) for path in one.trace.paths())
            assert len(before[one.rollout_id]) == num_trained
    # The second turn of the branched rollout begins at its third trained id.
    turns = list(pair[0].trace.turns)
    turns[1] = shifted(turns[1], 2)
    changed = dataclasses.replace(
        pair[0], trace=dataclasses.replace(pair[0].trace, turns=tuple(turns))
    )
    after = ratios([*groups[:-1], dataclasses.replace(groups[-1], rollouts=(changed, pair[1]))])
    for name, found in before.items():
        factors = [b / a for a, b in zip(found, after[name], strict=True)]
        wanted = [math.exp(SHIFT) if (name, n) == ("b0", 4) else 1.0 for n in range(len(found))]
        assert factors == pytest.approx(wanted, rel=1e-4), name


def test_they_are_stored_with_the_rollouts_that_were_trained_on(tmp_path: Path) -> None:
    (group, *_) = random_groups(1)
    judged = [JudgedGroup(whole=group, kept=group, reason=None)]
    store = RolloutStore(tmp_path)
    first = group.rollouts[0].rollout_id
    store.write(1, judged, {first: (1.0, 0.5, 1.2345678)})
    stored = list(store.read(1))
    assert stored[0].ratios == (1.0, 0.5, 1.23457)
    assert [one.ratios for one in stored[1:]] == [None] * (len(stored) - 1)
    store.write(2, judged)
    assert {one.ratios for one in store.read(2)} == {None}
