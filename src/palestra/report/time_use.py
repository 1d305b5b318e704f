"""Where the time of a run went: by the clock, and inside its episodes; pure functions."""

from __future__ import annotations

from dataclasses import dataclass

from palestra.report.run_record import RunRecord

EPISODE_STAGES = {
    "model": "model calls",
    "commands": "commands in the sandbox",
    "grading": "hidden tests",
    "start": "sandbox start",
    "queue": "waiting for a place",
    "other": "reading diffs, the rest",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage, its seconds, and its share of them all."""

    name: str
    seconds: float
    share: float


def clock_stages(record: RunRecord) -> tuple[Stage, ...]:
    """Seconds on the clock, over all lives of the run; what is not accounted for comes last."""
    starting = sum(
        (p.loop_began_s if p.loop_began_s is not None else p.ended_s) - p.began_s
        for p in record.processes
    )
    warm = " and warm start" if record.recipe.warmstart.steps else ""
    known = {
        f"starting{warm}": starting,
        "episodes of training": record.total("rollout/wait_s") or 0.0,
        "training": record.total("time/train_s") or 0.0,
        "publishing weights": record.total("time/publish_s") or 0.0,
        "held-out evaluation": sum(e.duration_s for e in record.evaluations if not e.background),
    }
    rest = _alive_s(record) - sum(known.values())
    lost = ", and work lost to restarts" if len(record.processes) > 1 else ""
    return _stages(known | {f"saving{lost}": max(0.0, rest)})


def episode_stages(record: RunRecord) -> tuple[Stage, ...]:
    """Seconds inside the episodes of training, which overlap; the longest first."""
    known = {
        label: record.total(f"time/episodes_{stage}_s") or 0.0
        for stage, label in EPISODE_STAGES.items()
    }
    return tuple(sorted(_stages(known), key=lambda stage: -stage.seconds))


def total_s(record: RunRecord) -> float:
    """Seconds that the run was alive, as far as it left word."""
    return sum(stage.seconds for stage in clock_stages(record))


def _alive_s(record: RunRecord) -> float:
    # A process that was killed may have lived on after what it said last.
    return sum(process.ended_s - process.began_s for process in record.processes)


def _stages(seconds: dict[str, float]) -> tuple[Stage, ...]:
    total = sum(seconds.values())
    return tuple(
        Stage(name=name, seconds=value, share=value / total)
        for name, value in seconds.items()
        if value > 0
    )
