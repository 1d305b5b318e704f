from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from palestra.cli.time_left import TimeLeft
from palestra.cli.training_view import TrainingView
from palestra.learning.protocols import StepReport
from palestra.records import EpisodeResult, Outcome, Rollout, Timings, Trace

METRICS = {
    "rollout/episodes": 16.0,
    "outcome/solved": 0.25,
    "solve_rate": 0.25,
    "time/step_s": 30.0,
    "train/loss": 0.5,
}


def rollout(outcome: Outcome) -> Rollout:
    episode = EpisodeResult(
        episode_id="e",
        instance_id="task",
        outcome=outcome,
        exit_status="Submitted",
        messages=(),
        patch=None,
        submission=None,
        verdict=None,
        error=None,
        num_turns=1,
        num_tool_calls=1,
        timings=Timings(),
    )
    return Rollout(rollout_id="run-0-0", episode=episode, trace=Trace(session_id="", turns=()))


def report(step: int, metrics: Mapping[str, float] = METRICS, **changes: Any) -> StepReport:
    return StepReport(step=step, version=step, trained=True, metrics=metrics, **changes)


def view_on(*, terminal: bool, interval_s: float = 60.0) -> tuple[TrainingView, io.StringIO]:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=160, soft_wrap=True)
    return TrainingView(10, 0, console=console, interval_s=interval_s), text


def play(view: TrainingView) -> None:
    with view:
        for _ in range(5):
            view.on_episode_begin("run-0-0")
        view.on_episode(rollout(Outcome.SOLVED))
        view.on_episode(rollout(Outcome.UNSOLVED))
        view.on_step(report(1))
        view.on_episode(rollout(Outcome.UNSOLVED))


def test_plain_lines_where_there_is_no_terminal() -> None:
    view, text = view_on(terminal=False)
    play(view)
    (line,) = text.getvalue().splitlines()
    assert "\x1b" not in line
    assert "step 1/10" in line
    assert "solved 4/16" in line
    assert "4 min 30 s left" in line


def test_a_terminal_shows_what_is_in_flight_and_what_is_left() -> None:
    view, text = view_on(terminal=True)
    play(view)
    now = "2 in flight, 1 episode ended, 0 solved; 25.0 % in the last step; 4 min 30 s left"
    assert now in text.getvalue()


def test_a_long_step_says_now_and_then_how_far_it_is() -> None:
    view, text = view_on(terminal=False, interval_s=-1.0)
    with view:
        view.on_episode_begin("run-0-0")
        view.on_episode_begin("run-0-1")
        view.on_episode(rollout(Outcome.SOLVED))
    assert "step 1: 1 in flight, 1 episode ended, 1 solved" in text.getvalue()


def test_a_step_without_numbers() -> None:
    view, text = view_on(terminal=False)
    with view:
        view.on_step(StepReport(step=10, version=0, trained=False, metrics={}))
    (line,) = text.getvalue().splitlines()
    assert "nothing trained" in line
    assert "left" not in line
    assert "solved" not in line


def test_time_left_goes_by_the_last_steps() -> None:
    left = TimeLeft(100)
    assert (left.seconds(), left.words()) == (None, "")
    left.add(1, None)
    assert left.seconds() is None
    left.add(2, 10.0)
    left.add(3, 20.0)
    assert left.seconds() == 97 * 15.0
    for step in range(4, 51):
        left.add(step, 2.0)
    assert left.seconds() == 50 * 2.0
    left.add(100, 2.0)
    assert left.words() == ""


def test_an_evaluation_shows_pass_at_k_and_which_weights_it_spans() -> None:
    view, shown = view_on(terminal=False)
    metrics = {"episodes": 80.0, "solve_rate": 0.5, "solve_rate_low": 0.4, "solve_rate_high": 0.6}
    metrics |= {"pass@1": 0.5, "pass@4": 0.75, "pass@4_low": 0.6, "pass@4_tasks": 19.0}
    metrics |= {"oldest_version": 10.0, "newest_version": 12.0}
    view.on_evaluation(10, {f"eval/sampled/{name}": value for name, value in metrics.items()})
    assert "solved 50.0 % of 80 (95 % interval 40.0 to 60.0)" in shown.getvalue()
    assert "; pass@1 50.0 %; pass@4 75.0 %; by weights v10 to v12" in shown.getvalue()
