"""What ``palestra train`` shows: a calm line per step, and a bar where there is a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from palestra.learning.protocols import StepReport
from palestra.records import Outcome, Rollout

WARMUP_LINES = 5


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

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a held-out evaluation."""
        if "eval/solve_rate" not in metrics:
            self.say(f"held-out after step {step}: no episode could be graded")
            return
        rate, low, high = (
            100 * metrics[f"eval/solve_rate{part}"] for part in ("", "_low", "_high")
        )
        episodes = int(metrics["eval/episodes"])
        self.say(
            f"held-out after step {step}: solved {rate:.1f} % of {episodes}"
            f" (95 % interval {low:.1f} to {high:.1f})"
        )

    def __enter__(self) -> TrainingView:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


SHOWN = {
    "train/loss": "loss",
    "train/grad_norm": "grad",
    "train/entropy": "entropy",
    "train/mis_tis_weight_before_bound": "mis",
    "time/step_s": "s",
}
"""Metrics that a step's line shows, and under which word."""
