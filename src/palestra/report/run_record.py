"""A run directory, read into frozen records; nothing is computed here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from palestra.config import Recipe
from palestra.errors import ConfigError, HostError
from palestra.events import Event, read_events
from palestra.learning.evaluations import Evaluation, EvaluationStore
from palestra.learning.metrics_table import MetricsTable
from palestra.recipe_files import load_recipe
from palestra.run.directory import RunDirectory
from palestra.run.facts import RunFacts

STARTED = "run.started"
LOOP_STARTED = "loop.started"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """The metrics of one step; what it did not report is not in there."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One life of the run: from a start or a resume to its end, however it came.

    Attributes:
        began_s: Unix seconds.
        ended_s: when it was last heard of, Unix seconds.
        loop_began_s: when its first step or evaluation began; ``None``: it never did.
        facts: what it stood on; ``None`` when it did not say.
    """

    began_s: float
    ended_s: float
    loop_began_s: float | None
    facts: RunFacts | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """Everything that the report and the summary say is taken from here.

    Attributes:
        run: the directory.
        recipe: as it was resolved.
        steps: every step that is complete, in order.
        evaluations: every held-out evaluation that is complete, by step.
        processes: the lives of the run, in order.
        checkpoint: the newest one's step; ``None``: there is none.
    """

    run: RunDirectory
    recipe: Recipe
    steps: tuple[StepRow, ...]
    evaluations: tuple[Evaluation, ...]
    processes: tuple[Process, ...]
    checkpoint: int | None

    def series(self, name: str) -> tuple[tuple[int, float], ...]:
        """(step, value) of a metric, for the steps that reported it."""
        return tuple((row.step, row.metrics[name]) for row in self.steps if name in row.metrics)

    def total(self, name: str) -> float | None:
        """Sum of a metric over all steps; ``None`` when no step reported it."""
        values = [value for _, value in self.series(name)]
        return sum(values) if values else None


def read_run(run: RunDirectory) -> RunRecord:
    """Read a run directory; it may belong to a run that goes on meanwhile.

    Raises:
        ConfigError: it is no run directory.
        HostError: a file in it cannot be read.
    """
    if not run.recipe.exists():
        raise ConfigError(f"{run.root} is not a run directory: it has no recipe.toml")
    try:
        steps = tuple(_row(row) for row in MetricsTable(run.metrics).rows())
        processes = tuple(_processes(read_events(run.events))) if run.events.exists() else ()
    except OSError as error:
        raise HostError.from_os(error, doing="cannot read the run") from error
    except (ValueError, KeyError) as error:
        raise HostError(f"cannot read {run.metrics}: {error}") from error
    return RunRecord(
        run=run,
        recipe=load_recipe(run.recipe),
        steps=steps,
        evaluations=tuple(EvaluationStore(run.evaluations).read_all()),
        processes=processes,
        checkpoint=_newest_checkpoint(run.checkpoints),
    )


def _row(row: Mapping[str, str]) -> StepRow:
    metrics = {name: float(value) for name, value in row.items() if name != "step"}
    return StepRow(step=int(row["step"]), metrics=metrics)


def _processes(events: Iterator[Event]) -> Iterator[Process]:
    """Cut the event log where a process started."""
    life: list[Event] = []
    for event in events:
        if event.kind == STARTED and life:
            yield _process(life)
            life = []
        life.append(event)
    if life:
        yield _process(life)


def _process(life: list[Event]) -> Process:
    first = life[0]
    loops = [event.time_s for event in life if event.kind == LOOP_STARTED]
    return Process(
        began_s=first.time_s,
        ended_s=life[-1].time_s,
        loop_began_s=loops[0] if loops else None,
        facts=_facts(first),
    )


def _facts(event: Event) -> RunFacts | None:
    try:
        return _FACTS.validate_python(event.fields.get("facts"))
    except ValidationError:
        return None  # a run of another version


def _newest_checkpoint(folder: Path) -> int | None:
    steps = [int(path.name) for path in folder.glob("*/") if path.name.isdecimal()]
    return max(steps, default=None)


_FACTS = TypeAdapter(RunFacts)
