from __future__ import annotations

from typing import Any

from palestra.dashboard.run_log import RunLogBuilder, run_log
from palestra.events import Event
from palestra.records import Outcome, Timings


def event(kind: str, time_s: float = 0.0, **fields: Any) -> Event:
    return Event(kind=kind, time_s=time_s, fields=fields)


def rollout(rollout_id: str, time_s: float, **fields: Any) -> Event:
    known: dict[str, Any] = {
        "instance_id": "task",
        "outcome": "solved",
        "exit_status": "Submitted",
        "reward": 1.0,
        "num_turns": 2,
        "error": None,
    }
    return event("rollout", time_s, rollout_id=rollout_id, **(known | fields))


def group(step: int, number: int, **fields: Any) -> Event:
    known: dict[str, Any] = {
        "group_id": f"run-{number}",
        "instance_id": "task",
        "task_index": number,
        "rewards": [1.0, 0.0],
        "kept": True,
        "drop_reason": None,
    }
    return event("group", step=step, **(known | fields))


def step(number: int, time_s: float) -> Event:
    return event("step", time_s, step=number, version=number, trained=True, metrics={"m": 1.0})


def test_groups_and_episodes_find_their_step() -> None:
    log = run_log(
        [
            event("run.started"),
            event("rollout.retry", rollout_id="run-0-1", attempt=1),
            rollout("run-0-1", 5.0, began_s=1.0, timings={"eval_s": 2.0}, group_id="run-0"),
            rollout("run-0-0", 6.0, total_s=4.0),
            rollout("run-1-0", 7.0),
            group(1, 0),
            step(1, 10.0),
        ]
    )
    (found,) = log.steps
    first, second = found.episodes
    assert (first.rollout_id, first.began_s, first.timings) == ("run-0-0", 2.0, None)
    assert (second.num_retries, second.timings) == (1, Timings(eval_s=2.0))
    assert second.outcome is Outcome.SOLVED
    assert [e.rollout_id for e in log.episodes] == ["run-0-1", "run-0-0", "run-1-0"]


def test_steps_that_are_done_again_count_once() -> None:
    first_life = [
        *(rollout(f"run-0-{n}", 1.0, reward=0.0, outcome="unsolved") for n in range(2)),
        group(1, 0),
        step(1, 10.0),
        *(rollout(f"run-1-{n}", 11.0, reward=0.0, outcome="unsolved") for n in range(2)),
        group(2, 1),
        step(2, 20.0),
        group(3, 7),  # killed before its step was complete
    ]
    second_life = [
        event("run.started"),
        event("loop.started", step=1, version=1, discarded=[]),
        *(rollout(f"run-1-{n}", 31.0) for n in range(2)),
        group(2, 1, rewards=[1.0, 1.0]),
        step(2, 40.0),
    ]
    builder = RunLogBuilder()
    for item in first_life:
        builder.add(item)
    assert [entry.step for entry in builder.log().steps] == [1, 2]
    for item in second_life:
        builder.add(item)
    log = builder.log()
    assert [(entry.step, entry.ended_s) for entry in log.steps] == [(1, 10.0), (2, 40.0)]
    assert [e.ended_s for e in log.steps[1].episodes] == [31.0, 31.0]
    assert [g.rewards for g in log.steps[1].groups] == [(1.0, 1.0)]
    assert len(log.episodes) == 4


def test_events_of_another_version_are_passed_over() -> None:
    log = run_log(
        [
            event("rollout", rollout_id="run-0-0"),
            event("rollout", rollout_id="run-0-1", outcome="no such outcome"),
            event("group", step=1),
            event("step"),
            event("step", step=1, version=1, trained=True, metrics={}),
            event("something.else", anything=1),
        ]
    )
    assert log.episodes == ()
    assert [entry.step for entry in log.steps] == [1]
