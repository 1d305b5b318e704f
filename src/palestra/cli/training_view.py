"""What ``palestra train`` shows: a calm line per step, and a bar where there is a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from palestra.cli.terminal import PLAIN_INTERVAL_S
from palestra.cli.time_left import TimeLeft
from palestra.config import EvaluationMode
from palestra.learning.evaluations import EvaluationPlan
from palestra.learning.metrics import Interval
from palestra.learning.protocols import StepReport
from palestra.records import Outcome, Rollout
from palestra.report.words import percent, plural, solved_of

WARMUP_LINES = 5
STEP_INTERVAL_S = 60.0


@dataclass(slots=True)
class _Count:
    """Episodes of the step or the evaluation that is running."""

    total: int = 0
    done: int = 0
    solved: int = 0
    said_at_s: float = 0.0


class TrainingView:
    """Implements the run's watcher on stderr.

    Args:
        num_steps: of the run.
        num_warmup_steps: of its warm start.
        console: to show it on; ``None``: stderr.
        interval_s: how often a long step says how far it is, without a terminal.
    """

    def __init__(
        self,
        num_steps: int,
        num_warmup_steps: int,
        *,
        console: Console | None = None,
        interval_s: float = STEP_INTERVAL_S,
    ) -> None:
        self._console = console or Console(stderr=True, soft_wrap=True, highlight=False)
        self._num_steps = num_steps
        self._num_warmup_steps = num_warmup_steps
        self._interval_s = interval_s
        self._started = time.monotonic()
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
                transient=True,
            )
            self._steps = self._bar.add_task("steps", total=num_steps, note="")
            self._held_out = self._bar.add_task("held-out", total=None, note="", visible=False)
        self._evaluation = _Count()
        self._episodes = _Count(said_at_s=time.monotonic())
        self._num_in_flight = 0
        self._step = 0
        self._last_rate: float | None = None
        self._time_left = TimeLeft(num_steps)

    def say(self, text: str) -> None:
        """Print a line with the time since the start."""
        self._console.print(f"{time.monotonic() - self._started:6.1f}s  {text}", markup=False)

    def on_warmup(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a step of the warm start now and then."""
        every = max(1, self._num_warmup_steps // WARMUP_LINES)
        if step % every == 0 or step == self._num_warmup_steps:
            self.say(
                f"warm start {step}/{self._num_warmup_steps}  loss {metrics['warmstart/loss']:.3f}"
            )

    def on_episode_begin(self, rollout_id: str) -> None:
        """Count an episode in flight."""
        self._num_in_flight += 1
        self._show_step()

    def on_episode(self, rollout: Rollout) -> None:
        """Count an episode that ended since the last step."""
        count = self._episodes
        self._num_in_flight -= 1
        count.done += 1
        count.solved += rollout.episode.outcome is Outcome.SOLVED
        self._show_step()
        if self._bar is None and time.monotonic() - count.said_at_s > self._interval_s:
            count.said_at_s = time.monotonic()
            self.say(f"step {self._step + 1}: {self._note()}")

    def on_step(self, report: StepReport) -> None:
        """Show what a step did, and how long the others will take."""
        metrics = report.metrics
        self._step = report.step
        self._last_rate = metrics.get("solve_rate")
        self._time_left.add(report.step, metrics.get("time/step_s"))
        parts = [f"step {report.step}/{self._num_steps}", f"weights v{report.version}"]
        if num_episodes := round(metrics.get("rollout/episodes", 0)):
            num_solved = round(metrics.get(f"outcome/{Outcome.SOLVED}", 0) * num_episodes)
            parts.append(f"solved {num_solved}/{num_episodes}")
        for name, label in SHOWN.items():
            if name in metrics:
                parts.append(f"{label} {metrics[name]:.3g}")
        if not report.trained:
            parts.append("no group had a signal: nothing trained")
        if left := self._time_left.words():
            parts.append(left)
        self.say("  ".join(parts))
        self._episodes = _Count(said_at_s=time.monotonic())
        if self._bar is not None:
            self._bar.update(self._steps, completed=report.step)
        self._show_step()

    def _show_step(self) -> None:
        if self._bar is not None:
            self._bar.update(self._steps, note=self._note())

    def _note(self) -> str:
        """What goes on in this step, as ``16 in flight, 45 episodes ended, 18 solved``."""
        count = self._episodes
        ended = plural(count.done, "episode")
        parts = [f"{self._num_in_flight} in flight, {ended} ended, {count.solved} solved"]
        if self._last_rate is not None:
            parts.append(f"{percent(self._last_rate)} in the last step")
        return "; ".join([*parts, *filter(None, [self._time_left.words()])])

    def on_evaluation_begin(self, plan: EvaluationPlan, num_episodes: int) -> None:
        """Say what is evaluated, and count its episodes from here on."""
        how = "greedy" if plan.mode == "greedy" else f"sampled at temperature {plan.temperature:g}"
        self.say(f"evaluating after step {plan.step}: {num_episodes} held-out episodes, {how}")
        self._evaluation = _Count(total=num_episodes, said_at_s=time.monotonic())
        if self._bar is not None:
            self._bar.update(self._held_out, total=num_episodes, completed=0, note="", visible=True)

    def on_evaluation_episode(self, rollout: Rollout) -> None:
        """Count an episode of the evaluation."""
        count = self._evaluation
        count.done += 1
        count.solved += rollout.episode.reward == 1.0
        if self._bar is not None:
            self._bar.update(
                self._held_out,
                completed=count.done,
                note=f"{count.solved} solved",
                visible=count.done < count.total,
            )
        elif count.done < count.total and time.monotonic() - count.said_at_s > PLAIN_INTERVAL_S:
            count.said_at_s = time.monotonic()
            self.say(f"evaluated {count.done} of {count.total}, {count.solved} solved")

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a held-out evaluation, a line for each mode."""
        for mode in get_args(EvaluationMode):
            if f"eval/{mode}/episodes" in metrics:
                told = [_solved(metrics, mode), *_passed(metrics, mode), *_spanned(metrics, mode)]
                self.say(f"held-out after step {step}, {mode}: {'; '.join(told)}")

    def __enter__(self) -> TrainingView:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _solved(metrics: Mapping[str, float], mode: str) -> str:
    if f"eval/{mode}/solve_rate" not in metrics:
        return "no episode could be graded"
    rate, low, high = (metrics[f"eval/{mode}/solve_rate{part}"] for part in ("", "_low", "_high"))
    return solved_of(rate, Interval(low=low, high=high), metrics[f"eval/{mode}/episodes"])


def _passed(metrics: Mapping[str, float], mode: str) -> list[str]:
    prefix = f"eval/{mode}/pass@"
    ks = [name.removeprefix(prefix) for name in metrics if name.startswith(prefix)]
    return [f"pass@{k} {percent(metrics[prefix + k])}" for k in ks if k.isdecimal()]


def _spanned(metrics: Mapping[str, float], mode: str) -> list[str]:
    oldest, newest = (metrics.get(f"eval/{mode}/{end}_version") for end in ("oldest", "newest"))
    if oldest is None or newest is None or oldest == newest:
        return []
    return [f"by weights v{round(oldest)} to v{round(newest)}"]


SHOWN = {
    "train/loss": "loss",
    "train/grad_norm": "grad",
    "train/entropy": "entropy",
    "train/mis_tis_weight_before_bound": "mis",
    "time/step_s": "s",
}
"""Metrics that a step's line shows, and under which word."""
