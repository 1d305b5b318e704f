"""Why slow and why flat, as pages and as the panels on them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Response

from palestra.config import Recipe
from palestra.dashboard.critical_path import Stage
from palestra.dashboard.episode_view import UnreadableRecord
from palestra.dashboard.flat import FlatReport, why_flat
from palestra.dashboard.group_signal import GroupKind
from palestra.dashboard.index import RunIndex
from palestra.dashboard.listing import TRAINING
from palestra.dashboard.pages import html, of_run
from palestra.dashboard.panels import panel_wire
from palestra.dashboard.rendering import to_json
from palestra.dashboard.run_log import run_log
from palestra.dashboard.site import NothingThere, Site
from palestra.dashboard.slow import STAGE_WORDS, SlowReport, why_slow, with_commands
from palestra.dashboard.why_text import KIND_WORDS
from palestra.errors import PalestraError
from palestra.events import read_events
from palestra.recipe_files import load_recipe
from palestra.records import EpisodeResult

_MAX_KEPT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """Both answers for a run, or for one step of it."""

    slow: SlowReport
    flat: FlatReport


class WhyPages:
    """The two pages and their panels.

    Args:
        site: what there is to show.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._kept: OrderedDict[tuple[str, int, int | None], Why] = OrderedDict()
        self._lock = threading.Lock()
        self.router = APIRouter()
        self.router.get("/runs/{run}/slow")(self.slow)
        self.router.get("/runs/{run}/flat")(self.flat)
        self.router.get("/runs/{run}/slow.json")(self.slow_panels)
        self.router.get("/runs/{run}/flat.json")(self.flat_panels)

    def slow(self, run: str, step: int | None = None) -> Response:
        """Where the time went, what held steps up, what to change."""
        index = self._site.library.open(run)
        report = self._why(index, step).slow
        return html(
            "slow.html.j2",
            **(of_run(index) | {"tab": "slow"}),
            report=with_commands(report, self._worst(index, report)),
            words=STAGE_WORDS,
            step=step,
            steps=index.metrics.steps,
        )

    def flat(self, run: str, step: int | None = None) -> Response:
        """What there was to learn from, and what became of it."""
        index = self._site.library.open(run)
        return html(
            "flat.html.j2",
            **(of_run(index) | {"tab": "flat"}),
            report=self._why(index, step).flat,
            words=KIND_WORDS,
            step=step,
            steps=index.metrics.steps,
        )

    def slow_panels(self, run: str) -> Response:
        """The critical path of each step."""
        steps = self._why(self._site.library.open(run), None).slow.steps
        seconds = [{time.stage: time.seconds for time in step.stages} for step in steps]
        lines = [
            (stage.value, STAGE_WORDS[stage], [of.get(stage, 0.0) for of in seconds])
            for stage in Stage
        ]
        axis = [step.step for step in steps]
        return to_json({"panels": [_stack("critical", "What each step waited for", axis, lines)]})

    def flat_panels(self, run: str) -> Response:
        """Groups by kind, and the effective batch, of each step."""
        steps = self._why(self._site.library.open(run), None).flat.steps
        axis = [step.step for step in steps]
        kinds = [
            (f"kind-{kind.value}", KIND_WORDS[kind], [step.groups.get(kind, 0) for step in steps])
            for kind in GroupKind
        ]
        batch = panel_wire(
            name="batch",
            heading="Effective batch",
            note="episodes of a step whose rewards differ inside a kept group",
            steps=axis,
            lines=[_line("s1", "episodes", [step.effective_batch for step in steps])],
        )
        solved = panel_wire(
            name="solved",
            heading="Solve rate",
            note="of the graded episodes of a step",
            unit="share",
            steps=axis,
            lines=[_line("s1", "training", [step.solve_rate for step in steps])],
        )
        groups = _stack("kinds", "Groups by what their rewards say", axis, kinds, unit="count")
        return to_json({"panels": [groups, batch, solved]})

    def _why(self, index: RunIndex, step: int | None) -> Why:
        key = (index.run.root.name, index.revision, step)
        with self._lock:
            if key not in self._kept:
                recipe = _recipe_of(index)
                events = read_events(index.run.events) if index.run.events.exists() else iter(())
                log = run_log(events)
                self._kept[key] = Why(
                    slow=why_slow(log, recipe, step=step), flat=why_flat(log, recipe, step=step)
                )
            self._kept.move_to_end(key)
            while len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)
            return self._kept[key]

    def _worst(self, index: RunIndex, report: SlowReport) -> dict[str, EpisodeResult]:
        found = {}
        for slow in report.worst:
            row = index.episode(slow.rollout_id)
            try:
                if row is not None:
                    found[slow.rollout_id] = self._site.stored(index, TRAINING, row).episode
            except (NothingThere, UnreadableRecord, PalestraError):
                continue  # its time is known all the same
        return found


def _recipe_of(index: RunIndex) -> Recipe:
    """The recipe of a run; the defaults where this version cannot read it."""
    try:
        return load_recipe(index.run.recipe)
    except PalestraError:
        return Recipe()


def _stack(
    name: str,
    heading: str,
    steps: Sequence[int],
    lines: Sequence[tuple[str, str, Sequence[float]]],
    *,
    unit: str = "seconds",
) -> dict[str, Any]:
    present = [_line(style, label, values) for style, label, values in lines if any(values)]
    return panel_wire(
        name=name, heading=heading, note="", unit=unit, steps=steps, lines=present, is_stack=True
    )


def _line(style: str, label: str, values: Sequence[float | None]) -> dict[str, Any]:
    return {"label": label, "style": style, "values": list(values)}
