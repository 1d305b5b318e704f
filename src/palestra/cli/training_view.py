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
from palestra.config import EvaluationMode
from palestra.learning.evaluations import EvaluationPlan
from palestra.learning.metrics import Interval
from palestra.learning.protocols import StepReport
from palestra.records import Outcome, Rollout
from palestra.report.words import solved_of

WARMUP_LINES = 5


@dataclass(slots=True)
class _Count:
    """Episodes of the evaluation that is running."""

    total: int = 0
    done: int = 0
    solved: int = 0
    said_at_s: float = 0.0


class TrainingView:
    """Implements the run's watcher on stderr.

    Args:
        num_steps: of the run.
        num_warmup_steps: of its warm start.
    """

    def __init__(self, num_steps: int, num_warmup_steps: int) -> None:
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)
        self._num_steps = num_steps
        self._num_warmup_steps = num_warmup_steps
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
        self._num_episodes = 0
        self._num_solved = 0

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

    def on_episode(self, rollout: Rollout) -> None:
        """Count an episode of the step that is being collected."""
        self._num_episodes += 1
        self._num_solved += rollout.episode.outcome is Outcome.SOLVED
        if self._bar is not None:
            note = f"{self._num_episodes} episodes, {self._num_solved} solved"
            self._bar.update(self._steps, note=note)

    def on_step(self, report: StepReport) -> None:
        """Show what a step did."""
        parts = [f"step {report.step}/{self._num_steps}", f"weights v{report.version}"]
        if self._num_episodes:
            parts.append(f"solved {self._num_solved}/{self._num_episodes}")
        for name, label in SHOWN.items():
            if name in report.metrics:
                parts.append(f"{label} {report.metrics[name]:.3g}")
        if not report.trained:
            parts.append("no group had a signal: nothing trained")
        self.say("  ".join(parts))
        self._num_episodes = self._num_solved = 0
        if self._bar is not None:
            self._bar.update(self._steps, completed=report.step, note="")

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
                self.say(f"held-out after step {step}, {mode}: {_solved(metrics, mode)}")

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


SHOWN = {
    "train/loss": "loss",
    "train/grad_norm": "grad",
    "train/entropy": "entropy",
    "train/mis_tis_weight_before_bound": "mis",
    "time/step_s": "s",
}
"""Metrics that a step's line shows, and under which word."""
