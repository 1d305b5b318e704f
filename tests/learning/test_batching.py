from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_toys import CPU, batch_of, group, path_of, random_groups, rollout, turn

from palestra.config_training import OverlongSection
from palestra.learning.training.batching import TrainingRow, microbatches, training_rows
from palestra.learning.training.packing import common_prefix, pack, plan_packs
from palestra.records import Outcome


def row(path_parts: list[tuple[bool, list[int]]], advantage: float = 1.0) -> TrainingRow:
    return TrainingRow(rollout_id="r", path=path_of(path_parts), advantage=advantage)


# --- groups → rows --------------------------------------------------------------


def test_each_path_of_a_rollout_is_a_row_with_its_advantage() -> None:
    branched = rollout(
        "branched",
        Outcome.SOLVED,
        [
            turn(0, [1, 2], [3]),
            turn(1, [4], [5], parent=0),
            turn(2, [6], [7, 8], parent=0),  # the agent rewrote its history after turn 0
        ],
    )
    plain = rollout("plain", Outcome.UNSOLVED, [turn(0, [1, 2], [9])])
    rows = training_rows([group(branched, plain)], advantage="group_mean", truncated="keep")
    assert [(r.rollout_id, r.path.ids, r.advantage) for r in rows] == [
        ("branched", (1, 2, 3, 4, 5), 0.5),
        ("branched", (1, 2, 3, 6, 7, 8), 0.5),
        ("plain", (1, 2, 9), -0.5),
    ]
    assert rows[1].path.trainable == (False, False, False, False, True, True), (
        "the shared turn is trained on once"
    )


def test_trouble_gives_no_row_and_no_baseline() -> None:
    rows = training_rows(
        [
            group(
                rollout("good", Outcome.SOLVED, [turn(0, [1], [2])]),
                rollout("bad", Outcome.UNSOLVED, [turn(0, [1], [3])]),
                rollout("broken", Outcome.INFRA_ERROR, [turn(0, [1], [4])]),
                rollout("flaky", Outcome.FLAKY, [turn(0, [1], [5])]),
            )
        ],
        advantage="group_mean",
        truncated="keep",
    )
    assert [(r.rollout_id, r.advantage) for r in rows] == [("good", 0.5), ("bad", -0.5)]


@pytest.mark.parametrize(("truncated", "names"), [("keep", ["good", "cut"]), ("mask", ["good"])])
def test_truncated_rollouts_always_count_in_the_baseline(truncated: str, names: list[str]) -> None:
    rows = training_rows(
        [
            group(
                rollout("good", Outcome.SOLVED, [turn(0, [1], [2])]),
                rollout("cut", Outcome.TRUNCATED, [turn(0, [1], [3])]),
            )
        ],
        advantage="group_mean",
        truncated=truncated,  # type: ignore[arg-type]
    )
    assert [r.rollout_id for r in rows] == names
    assert rows[0].advantage == 0.5


def test_overlong_rollouts_count_in_the_baseline_only() -> None:
    rows = training_rows(
        [
            group(
                rollout("short", Outcome.SOLVED, [turn(0, [1], [2])]),
                rollout("long", Outcome.UNSOLVED, [turn(0, [1], [3, 4, 5])]),
            )
        ],
        advantage="group_mean",
        max_row_tokens=3,
    )
    assert [(r.rollout_id, r.advantage) for r in rows] == [("short", 0.5)]


def test_length_costs_reward_before_the_baseline_is_taken() -> None:
    rows = training_rows(
        [
            group(
                rollout("short", Outcome.SOLVED, [turn(0, [1], [2])]),
                rollout("half", Outcome.SOLVED, [turn(0, [1], [3] * 3)]),
                rollout("whole", Outcome.SOLVED, [turn(0, [1], [3] * 2), turn(1, [5], [4] * 2)]),
            )
        ],
        advantage="group_mean",
        overlong=OverlongSection(max_tokens=4, buffer=2),
    )
    # Rewards 1, 1/2 and 0; sampled ids of all turns count, context does not.
    assert [r.advantage for r in rows if r.path.ids[0] != 5] == pytest.approx([0.5, 0, -0.5])


def test_batch_std_whitens_over_the_trained_ids_of_all_groups() -> None:
    groups = [
        dataclasses.replace(
            group(
                rollout(f"good {n}", Outcome.SOLVED, [turn(0, [1], [2] * (n + 1))]),
                rollout(f"bad {n}", Outcome.UNSOLVED, [turn(0, [1], [3] * (2 * n + 1))]),
            ),
            group_id=f"g{n}",
        )
        for n in range(3)
    ]
    rows = training_rows(groups, advantage="batch_std")
    ids = np.repeat([r.advantage for r in rows], [r.num_trainable for r in rows])
    assert ids.mean() == pytest.approx(0, abs=1e-6)
    assert ids.std(ddof=1) == pytest.approx(1, rel=1e-5)


def test_shuffled_rewards_keep_trouble_out_and_differ_by_group() -> None:
    groups = [
        dataclasses.replace(
            group(
                rollout("good", Outcome.SOLVED, [turn(0, [1], [2])]),
                rollout("broken", Outcome.INFRA_ERROR, [turn(0, [1], [4])]),
                rollout("bad", Outcome.UNSOLVED, [turn(0, [1], [3])]),
            ),
            group_id=f"g{n}",
        )
        for n in range(20)
    ]
    rows = training_rows(groups, advantage="group_mean", truncated="keep", shuffle_seed=0)
    assert {r.rollout_id for r in rows} == {"good", "bad"}
    pairs = [(a.advantage, b.advantage) for a, b in zip(rows[::2], rows[1::2], strict=True)]
    assert set(pairs) == {(0.5, -0.5), (-0.5, 0.5)}


def test_rollouts_that_sampled_nothing_give_no_row() -> None:
    empty = rollout("empty", Outcome.UNSOLVED, [])
    good = rollout("good", Outcome.SOLVED, [turn(0, [1], [2])])
    rows = training_rows([group(empty, good)], advantage="group_mean", truncated="keep")
    assert [r.rollout_id for r in rows] == ["good"]


def test_rows_refuse_what_cannot_be_trained() -> None:
    with pytest.raises(ValueError, match="without a trainable id"):
        row([(False, [1, 2])])
    with pytest.raises(ValueError, match="no context"):
        row([(True, [1, 2])])


# --- packing --------------------------------------------------------------------


def test_packing_by_hand() -> None:
    assert pack([3, 10, 4, 5], max_tokens=10) == [[1], [3, 2], [0]]
    assert pack([30], max_tokens=10) == [[0]], "a row is never cut"
    assert pack([], max_tokens=10) == []


@given(lengths=st.lists(st.integers(1, 40), max_size=30), max_tokens=st.integers(1, 120))
def test_packing_loses_nothing_and_stays_within_bounds(lengths: list[int], max_tokens: int) -> None:
    packs = pack(lengths, max_tokens=max_tokens)
    assert sorted(i for p in packs for i in p) == list(range(len(lengths)))
    for indices in packs:
        padded = len(indices) * max(lengths[i] for i in indices)
        assert padded <= max_tokens or len(indices) == 1


ROWS = st.lists(
    st.tuples(st.sampled_from(["", "a", "b"]), st.lists(st.integers(0, 1), min_size=1, max_size=8)),
    max_size=20,
)


@given(rows=ROWS, max_tokens=st.integers(1, 60))
def test_plans_lose_nothing_and_share_only_what_is_the_same(
    rows: list[tuple[str, list[int]]], max_tokens: int
) -> None:
    ids, groups = [tuple(ids) for _, ids in rows], [group for group, _ in rows]
    packs = plan_packs(ids, groups, max_tokens=max_tokens)
    assert sorted(i for p in packs for i in p.rows) == list(range(len(rows)))
    for p in packs:
        assert len({ids[i][: p.num_shared] for i in p.rows}) == 1
        assert all(len(ids[i]) > p.num_shared for i in p.rows), "each row has an id of its own"
        assert not p.num_shared or len({groups[i] for i in p.rows}) == 1
        padded = p.num_shared + len(p.rows) * max(len(ids[i]) - p.num_shared for i in p.rows)
        assert padded <= max_tokens or len(p.rows) == 1


def test_common_prefix_by_hand() -> None:
    assert common_prefix([(1, 2, 3), (1, 2, 4), (1, 2, 3, 4)]) == 2
    assert common_prefix([(1, 2), (1, 2)]) == 1, "one id is left to each"
    assert common_prefix([(1,), (2,)]) == 0


def test_a_prefix_that_saves_little_is_not_shared() -> None:
    long = [list(range(n, n + 20)) for n in (100, 200)]
    (pack_,) = plan_packs([(1, *long[0]), (1, *long[1])], ["a", "a"], max_tokens=100)
    assert pack_.num_shared == 0


# --- tensors --------------------------------------------------------------------


def test_each_trained_id_is_predicted_from_the_position_before_it() -> None:
    long = row([(False, [5, 6]), (True, [7, 8]), (False, [9]), (True, [10])], advantage=0.5)
    short = row([(False, [11]), (True, [12])], advantage=-2.0)
    batch = batch_of([long, short])
    assert batch.ids_BT.tolist() == [[5, 6, 7, 8, 9, 10], [11, 12, 0, 0, 0, 0]]
    assert batch.prefix_P.tolist() == []
    assert batch.target_ids_N.tolist() == [7, 8, 10, 12]
    predictors = batch.ids_BT.flatten()[batch.predictor_N]
    assert predictors.tolist() == [6, 7, 9, 11], "the id before each trained one"
    assert batch.advantages_N.tolist() == [0.5, 0.5, 0.5, -2.0]
    assert batch.row_N.tolist() == [0, 0, 0, 1]


def test_only_sampled_ids_reach_the_loss() -> None:
    for batch in microbatches(
        list(enumerate(training_rows(random_groups(1), truncated="keep"))),
        max_tokens=64,
        device=CPU,
    ):
        assert (batch.rollout_logprobs_N < 0).all(), "ids that were not sampled have 0.0"
        assert (batch.version_N >= 0).all(), "and version -1"


def test_a_greedy_turn_is_scored_at_temperature_one() -> None:
    path = path_of([(False, [1]), (True, [2])], temperature=0.0)
    batch = batch_of([TrainingRow(rollout_id="r", path=path, advantage=1.0)])
    assert batch.temperatures_N.tolist() == [1.0]


def test_microbatches_keep_the_number_of_each_row() -> None:
    rows = [row([(False, [1] * n), (True, [2])]) for n in (1, 5, 3)]
    batches = microbatches(list(zip((10, 20, 30), rows, strict=True)), max_tokens=8, device=CPU)
    assert [b.row_N.tolist() for b in batches] == [[20], [30, 10]]
    assert torch.equal(batches[1].predictor_N, torch.tensor([2, 4]))
