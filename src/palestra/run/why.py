"""Reads what "why slow" and "why flat" stand on out of a run directory."""

from __future__ import annotations

from dataclasses import dataclass

from palestra.dashboard.flat import FlatReport, why_flat
from palestra.dashboard.run_log import RunLog, run_log
from palestra.dashboard.slow import SlowReport, why_slow, with_commands
from palestra.errors import ConfigError, HostError
from palestra.events import read_events
from palestra.learning.rollouts.store import RolloutStore
from palestra.recipe_files import load_recipe
from palestra.records import EpisodeResult
from palestra.run.directory import RunDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyReport:
    """Both answers about one run, or one step of it."""

    slow: SlowReport
    flat: FlatReport


def explain(run: RunDirectory, *, step: int | None = None) -> WhyReport:
    """Say why a run is slow and why it is flat, also while it goes on.

    Args:
        run: its directory.
        step: of this step alone.

    Raises:
        ConfigError: it is no run directory, or has no such step.
        HostError: a file in it cannot be read.
    """
    if not run.recipe.exists():
        raise ConfigError(f"{run.root} is not a run directory: it has no recipe.toml")
    recipe = load_recipe(run.recipe)
    log = _log(run)
    if step is not None and step not in {entry.step for entry in log.steps}:
        known = (
            f"it has {log.steps[0].step} to {log.steps[-1].step}" if log.steps else "it has none"
        )
        raise ConfigError(f"{run.root} has no complete step {step}", hint=known)
    slow = why_slow(log, recipe, step=step)
    return WhyReport(
        slow=with_commands(slow, _episodes(run, slow)), flat=why_flat(log, recipe, step=step)
    )


def _log(run: RunDirectory) -> RunLog:
    try:
        return run_log(read_events(run.events)) if run.events.exists() else run_log(())
    except OSError as error:
        raise HostError.from_os(error, doing="cannot read the event log") from error


def _episodes(run: RunDirectory, slow: SlowReport) -> dict[str, EpisodeResult]:
    """The worst episodes as they are stored; ones that are gone are left out."""
    store = RolloutStore(run.root / "rollouts")
    wanted = {episode.rollout_id for episode in slow.worst}
    stored = set(store.steps())
    return {
        found.rollout.rollout_id: found.rollout.episode
        for step in sorted({episode.step for episode in slow.worst} & stored)
        for found in store.read(step)
        if found.rollout.rollout_id in wanted
    }
