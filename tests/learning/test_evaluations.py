from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from rollout_makers import make_episode, make_trace

from palestra.errors import HostError
from palestra.learning.evaluations import (
    EvaluatedEpisode,
    Evaluation,
    EvaluationPlan,
    EvaluationStore,
)
from palestra.learning.rollouts.json_lines import write_json_lines
from palestra.records import Outcome, Rollout


def make_evaluation(*outcomes: Outcome, step: int = 0, mode: str = "sampled") -> Evaluation:
    return Evaluation(
        plan=EvaluationPlan(
            step=step,
            version=step,
            mode=mode,  # type: ignore[arg-type]
            temperature=0.8 if mode == "sampled" else 0.0,
            attempts=1,
            tasks="digest",
        ),
        duration_s=2.5,
        episodes=tuple(
            EvaluatedEpisode(
                attempt=0,
                statement="it <fails>",
                kind="family",
                rollout=Rollout(
                    rollout_id=f"eval-{step}-{mode}-{number}",
                    episode=make_episode(outcome),
                    trace=make_trace(),
                ),
            )
            for number, outcome in enumerate(outcomes)
        ),
    )


def test_an_evaluation_comes_back_as_it_was(tmp_path: Path) -> None:
    store = EvaluationStore(tmp_path / "evaluations")
    evaluation = make_evaluation(Outcome.SOLVED, Outcome.TRUNCATED)
    assert store.write(evaluation).name == "0-sampled.jsonl.zst"
    assert store.find(evaluation.plan) == evaluation
    assert store.read_all() == [evaluation]


@pytest.mark.parametrize(
    "change", [{"version": 1}, {"temperature": 1.0}, {"attempts": 2}, {"tasks": "others"}]
)
def test_an_evaluation_stands_for_its_own_plan_only(
    tmp_path: Path, change: dict[str, object]
) -> None:
    store = EvaluationStore(tmp_path)
    evaluation = make_evaluation(Outcome.SOLVED)
    store.write(evaluation)
    other = dataclasses.replace(evaluation.plan, **change)  # type: ignore[arg-type]
    assert store.find(other) is None
    store.write(dataclasses.replace(evaluation, plan=other))
    assert [e.plan for e in store.read_all()] == [other]
    assert len(list(tmp_path.glob("*.1.discarded"))) == 1, "the former one is kept aside"


def test_what_was_not_graded_counts_for_nothing() -> None:
    metrics = make_evaluation(
        Outcome.SOLVED, Outcome.UNSOLVED, Outcome.INFRA_ERROR, Outcome.INFRA_ERROR
    ).metrics()
    assert metrics["episodes"] == 2
    assert metrics["solve_rate"] == 0.5
    assert metrics["outcome/infra_error"] == 0.5
    assert metrics["solve_rate_low"] < 0.5 < metrics["solve_rate_high"]
    assert metrics["time_s"] == 2.5
    ungraded = make_evaluation(Outcome.INFRA_ERROR).metrics()
    assert ungraded["episodes"] == 0
    assert "solve_rate" not in ungraded


def test_later_evaluations_are_set_aside_and_leftovers_removed(tmp_path: Path) -> None:
    store = EvaluationStore(tmp_path)
    for step in (0, 2, 10):
        for mode in ("sampled", "greedy"):
            store.write(make_evaluation(Outcome.SOLVED, step=step, mode=mode))
    (tmp_path / "10-greedy.jsonl.tmp").write_bytes(b"torn")
    moved = store.set_aside(after_step=2)
    assert sorted(path.name for path in moved) == [
        "10-greedy.jsonl.zst.1.discarded",
        "10-sampled.jsonl.zst.1.discarded",
    ]
    assert [(e.plan.step, e.plan.mode) for e in store.read_all()] == [
        (0, "sampled"),
        (0, "greedy"),
        (2, "sampled"),
        (2, "greedy"),
    ]
    assert not list(tmp_path.glob("*.tmp"))
    assert store.set_aside(after_step=2) == []


def test_where_nothing_is_there_is_nothing(tmp_path: Path) -> None:
    store = EvaluationStore(tmp_path / "none")
    assert store.read_all() == []
    assert store.set_aside(after_step=0) == []
    assert store.find(make_evaluation().plan) is None


@pytest.mark.parametrize("lines", [[], [{"plan": {}}], [{"duration_s": 1.0}], [["a list"]]])
def test_a_file_of_something_else_is_one_line(
    tmp_path: Path, lines: list[dict[str, object]]
) -> None:
    store = EvaluationStore(tmp_path)
    plan = make_evaluation().plan
    write_json_lines(store.path(0, "sampled"), lines, doing="writing")
    with pytest.raises(HostError, match=r"cannot read an evaluation .*0-sampled"):
        store.find(plan)
    store.path(0, "sampled").write_bytes(b"no zstandard at all")
    with pytest.raises(HostError, match="cannot read an evaluation"):
        store.read_all()
