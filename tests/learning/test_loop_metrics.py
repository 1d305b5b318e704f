from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_makers import make_episode, make_group

from palestra.config import RolloutsSection
from palestra.learning.metrics import (
    agent_metrics,
    batch_metrics,
    outcome_metrics,
    wilson_interval,
)
from palestra.learning.metrics_table import MetricsTable
from palestra.learning.rollouts.batch import StepBatch
from palestra.learning.rollouts.filters import judge
from palestra.records import Outcome, Timings


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe 1998, table I, and the closed form at the ends.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_matches_published_values(
    successes: int, trials: int, low: float, high: float
) -> None:
    interval = wilson_interval(successes, trials)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_share_and_is_symmetric(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    interval, mirrored = (wilson_interval(n, trials) for n in (successes, trials - successes))
    assert interval is not None
    assert mirrored is not None
    assert 0 <= interval.low <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= interval.high <= 1
    assert interval.low == pytest.approx(1 - mirrored.high, abs=1e-12)


def test_wilson_without_trials_and_with_impossible_ones() -> None:
    assert wilson_interval(0, 0) is None
    with pytest.raises(ValueError, match="3 successes in 2 trials"):
        wilson_interval(3, 2)


def test_agent_metrics_by_hand() -> None:
    first = make_episode(
        num_turns=4,
        num_tool_calls=2,
        timings=Timings(queue_s=1, agent_s=12, model_s=8, env_s=2, eval_s=4, total_s=20),
    )
    second = make_episode(num_turns=2, num_tool_calls=0, timings=Timings(model_s=2, total_s=10))
    failed = make_episode(Outcome.INFRA_ERROR, num_turns=99, timings=Timings(total_s=500))
    assert agent_metrics([first, second, failed]) == pytest.approx(
        {
            "agent/turns_mean": 3,
            "agent/turns_sum": 6,
            "agent/tool_calls_mean": 1,
            "agent/tool_calls_sum": 2,
            "agent/total_time_mean": 15,
            "agent/total_time_max": 20,
            "agent/total_time_min": 10,
            "agent/agent_run_time_mean": 12,
            "agent/model_query_time_sum_mean": 5,
            "agent/env_execution_time_sum_mean": 2,
            "agent/eval_time_mean": 4,
            "agent/overhead_time_mean": 5,
            "agent/time_per_turn": 3,
            "agent/model_query_time_avg": 1.5,
            "agent/env_execution_time_avg": 1,
            "agent/model_time_ratio": 0.3,
            "agent/env_time_ratio": 0.1,
            "agent/eval_time_ratio": 0.2,
        }
    )


def test_what_was_not_reported_is_left_out() -> None:
    assert set(agent_metrics([make_episode()])) == {
        "agent/turns_mean",
        "agent/turns_sum",
        "agent/tool_calls_mean",
        "agent/tool_calls_sum",
    }
    assert agent_metrics([make_episode(Outcome.INFRA_ERROR)]) == {}
    assert outcome_metrics([]) == {}
    assert "reward/mean" not in outcome_metrics([make_episode(Outcome.INFRA_ERROR)])


def test_outcomes_and_solve_rate_by_hand() -> None:
    outcomes = [Outcome.SOLVED, Outcome.TAMPERED, Outcome.UNSOLVED, Outcome.INFRA_ERROR]
    metrics = outcome_metrics([make_episode(outcome) for outcome in outcomes])
    assert metrics["outcome/solved"] == metrics["outcome/infra_error"] == 0.25
    assert metrics["outcome/flaky"] == 0
    assert metrics["integrity/tampered"] == 1
    assert metrics["reward/mean"] == metrics["solve_rate"] == pytest.approx(1 / 3)
    assert metrics["solve_rate_low"] < 1 / 3 < metrics["solve_rate_high"]


def test_batch_metrics_by_hand() -> None:
    section = RolloutsSection(max_off_policy_steps=2)
    groups = [
        make_group([Outcome.SOLVED, Outcome.UNSOLVED], versions=(3, 4), index=0),
        make_group([Outcome.SOLVED, Outcome.UNSOLVED], versions=(5,), index=1),
        make_group([Outcome.SOLVED, Outcome.SOLVED], versions=(5,), index=2),
    ]
    judged = tuple(judge(group, version=5, section=section) for group in groups)
    metrics = batch_metrics(StepBatch(version=5, judged=judged, wait_s=1.5))
    assert metrics["rollout/groups_kept"] == 2
    assert metrics["rollout/dropped_all_equal"] == 1
    assert metrics["rollout/episodes"] == 6
    assert metrics["rollout/off_policy_steps_mean"] == 1
    assert metrics["rollout/off_policy_steps_max"] == 2
    assert metrics["rollout/sampled_tokens_mean"] == pytest.approx((4 + 4 + 2 * 4) / 6)
    assert "rollout/dropped_stale" not in metrics


def test_the_table_grows_columns_and_leaves_gaps(tmp_path: Path) -> None:
    table = MetricsTable(tmp_path / "metrics.csv")
    table.append(1, {"a": 0.1})
    table.append(2, {"a": 0.2})
    table.append(3, {"b": 1.0})
    assert (tmp_path / "metrics.csv").read_text() == "step,a,b\n1,0.1,\n2,0.2,\n3,,1.0\n"
    assert table.rows()[2] == {"step": "3", "b": "1.0"}


def test_the_table_forgets_steps_that_will_be_done_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    table = MetricsTable(path)
    table.truncate(after_step=0)
    assert not path.exists()
    for step in (1, 2, 3):
        table.append(step, {"a": float(step)})
    with path.open("a") as file:
        file.write("4,4.")  # a crash tore this line
    table.truncate(after_step=2)
    assert path.read_text() == "step,a\n1,1.0\n2,2.0\n"
    with path.open("a") as file:
        file.write("3,")
    table.append(3, {"a": 3.0})
    assert [row["step"] for row in table.rows()] == ["1", "2", "3"]
