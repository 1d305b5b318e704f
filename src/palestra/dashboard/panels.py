"""Which charts a run has, as plain columns that the page's script draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from palestra.dashboard.index import RunIndex
from palestra.records import Outcome
from palestra.report.figures import REASONS
from palestra.report.words import OUTCOMES

Unit = Literal["share", "number", "seconds", "count", "ratio"]
_MODES = ("sampled", "greedy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One series of a panel.

    Attributes:
        label: its name.
        metric: that it shows.
        style: class of its colour.
        low: metric of the lower end of its interval.
        high: metric of the upper end.
    """

    label: str
    metric: str
    style: str = "s1"
    low: str | None = None
    high: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A chart: its heading, how to read it, and its series over the steps."""

    name: str
    heading: str
    note: str
    unit: Unit
    lines: tuple[Line, ...]
    is_stack: bool = False
    low: float | None = None
    reference: float | None = None
    held_out: Literal["solve_rate", "pass_at_k"] | None = None


PANELS = (
    Panel(
        name="solve_rate",
        heading="Solve rate",
        note="training by step, held out in between; bands and whiskers are 95 % intervals",
        unit="share",
        low=0.0,
        lines=(
            Line(
                label="training",
                metric="solve_rate",
                low="solve_rate_low",
                high="solve_rate_high",
            ),
        ),
        held_out="solve_rate",
    ),
    Panel(
        name="pass_at_k",
        heading="Pass@k, held out",
        note="chance that one of k sampled tries solves a task; whiskers are 95 % intervals",
        unit="share",
        low=0.0,
        lines=(),
        held_out="pass_at_k",
    ),
    Panel(
        name="outcomes",
        heading="How episodes ended",
        note="share of a step's episodes",
        unit="share",
        is_stack=True,
        lines=tuple(
            Line(label=OUTCOMES[o], metric=f"outcome/{o.value}", style=o.value) for o in Outcome
        ),
    ),
    Panel(
        name="groups",
        heading="Groups kept and dropped",
        note="kept ones are trained on; all equal ones carry no signal",
        unit="count",
        is_stack=True,
        lines=(
            Line(label="kept", metric="rollout/groups_kept", style="kept"),
            *(
                Line(label=words, metric=f"rollout/dropped_{reason.value}", style=reason.value)
                for reason, words in REASONS.items()
            ),
        ),
    ),
    Panel(
        name="reward",
        heading="Reward",
        note="mean over the episodes that have one",
        unit="number",
        low=0.0,
        lines=(Line(label="mean", metric="reward/mean"),),
    ),
    Panel(
        name="entropy",
        heading="Entropy",
        note="nats an id, where the policy sampled; towards 0 it stops exploring",
        unit="number",
        low=0.0,
        lines=(Line(label="entropy", metric="train/entropy"),),
    ),
    Panel(
        name="kl",
        heading="KL to the starting policy",
        note="k3 estimate, nats an id",
        unit="number",
        low=0.0,
        lines=(Line(label="KL", metric="train/kl_loss"),),
    ),
    Panel(
        name="mis",
        heading="MIS mask share",
        note="share of ids whose importance ratio is out of bounds",
        unit="share",
        low=0.0,
        lines=tuple(
            Line(label=label, metric=f"train/mis_tis_{metric}", style=style)
            for label, metric, style in (
                ("masked, too low", "mask_fraction_low", "s1"),
                ("masked, too high", "mask_fraction_high", "s2"),
                ("clipped, too low", "clip_fraction_low", "s1"),
                ("clipped, too high", "clip_fraction_high", "s2"),
                ("truncated", "truncate_fraction", "s1"),
            )
        ),
    ),
    Panel(
        name="ratio",
        heading="Importance ratio",
        note="trainer to engine, mean over ids; 1 where both agree",
        unit="ratio",
        reference=1.0,
        lines=(Line(label="mean", metric="train/mis_tis_weight_before_bound"),),
    ),
    Panel(
        name="lengths",
        heading="Sampled ids an episode",
        note="mean over a step",
        unit="number",
        low=0.0,
        lines=(Line(label="ids", metric="rollout/sampled_tokens_mean"),),
    ),
    Panel(
        name="turns",
        heading="Turns an episode",
        note="mean over a step",
        unit="number",
        low=0.0,
        lines=(Line(label="turns", metric="agent/turns_mean"),),
    ),
    Panel(
        name="staleness",
        heading="Staleness",
        note="versions between sampling and training",
        unit="number",
        low=0.0,
        lines=(
            Line(label="mean", metric="train/staleness_mean"),
            Line(label="oldest", metric="train/staleness_max", style="s2"),
        ),
    ),
    Panel(
        name="tokens_per_s",
        heading="Sampled ids a second",
        note="of the episodes of a step, over the step's time",
        unit="number",
        low=0.0,
        lines=(Line(label="ids/s", metric="tokens_per_s"),),
    ),
    Panel(
        name="seconds",
        heading="Seconds a step",
        note="waiting for episodes, training, publishing weights",
        unit="seconds",
        is_stack=True,
        lines=(
            Line(label="episodes", metric="rollout/wait_s", style="wait"),
            Line(label="training", metric="time/train_s", style="train"),
            Line(label="publishing", metric="time/publish_s", style="publish"),
        ),
    ),
    Panel(
        name="grad_norm",
        heading="Gradient norm",
        note="before it is clipped",
        unit="number",
        low=0.0,
        lines=(Line(label="norm", metric="train/grad_norm"),),
    ),
)


def series_of(index: RunIndex) -> list[dict[str, Any]]:
    """Every panel for which a run has data, as JSON values; absent values are null."""
    return [wire for panel in PANELS if (wire := _panel(index, panel)) is not None]


def _panel(index: RunIndex, panel: Panel) -> dict[str, Any] | None:
    steps = index.metrics.steps
    held_out = sorted(index.held_out) if panel.held_out is not None else []
    axis = sorted({*steps, *held_out})
    lines = [
        wire
        for line in panel.lines
        if (wire := _line(index, line, axis, is_stack=panel.is_stack)) is not None
    ]
    if panel.held_out is not None:
        lines += _HELD_OUT[panel.held_out](index, axis)
    if not lines or not axis:
        return None
    return panel_wire(
        name=panel.name,
        heading=panel.heading,
        note=panel.note,
        unit=panel.unit,
        steps=axis,
        lines=lines,
        is_stack=panel.is_stack,
        low=panel.low,
        reference=panel.reference,
    )


def panel_wire(
    *,
    name: str,
    heading: str,
    note: str,
    steps: Sequence[int],
    lines: Sequence[dict[str, Any]],
    unit: str = "number",
    is_stack: bool = False,
    low: float | None = 0.0,
    reference: float | None = None,
) -> dict[str, Any]:
    """A panel as the script that draws it reads it."""
    return {
        "name": name,
        "heading": heading,
        "note": note,
        "unit": unit,
        "stack": is_stack,
        "low": low,
        "reference": reference,
        "steps": list(steps),
        "lines": list(lines),
    }


def _line(
    index: RunIndex, line: Line, axis: Sequence[int], *, is_stack: bool
) -> dict[str, Any] | None:
    values = column(index, line.metric)
    if not any(values) if is_stack else all(v is None for v in values):
        return None
    steps = index.metrics.steps
    wire: dict[str, Any] = {
        "label": line.label,
        "style": line.style,
        "values": _spread(steps, values, axis),
    }
    if line.low and line.high:
        wire["low"] = _spread(steps, column(index, line.low), axis)
        wire["high"] = _spread(steps, column(index, line.high), axis)
    return wire


def column(index: RunIndex, metric: str) -> list[float | None]:
    """A metric at each step, also one that is made of others."""
    if metric != "tokens_per_s":
        return index.metrics.column(metric)
    tokens = index.metrics.column("rollout/sampled_tokens_sum")
    seconds = index.metrics.column("time/step_s")
    return [n / s if n is not None and s else None for n, s in zip(tokens, seconds, strict=True)]


def _held_out_lines(index: RunIndex, axis: Sequence[int]) -> list[dict[str, Any]]:
    """The solve rate in each mode."""
    found = (
        _held_out_line(index, f"eval/{mode}/solve_rate", f"held out, {mode}", style, axis)
        for mode, style in zip(_MODES, ("s2", "s3"), strict=True)
    )
    return [line for line in found if line is not None]


def _pass_at_k_lines(index: RunIndex, axis: Sequence[int]) -> list[dict[str, Any]]:
    """Pass@k for the smallest, the middle and the greatest k that any evaluation has."""
    prefix = "eval/sampled/pass@"
    rest = {
        name.removeprefix(prefix)
        for held_out in index.held_out.values()
        for name in held_out.metrics
        if name.startswith(prefix)
    }
    ks = sorted(int(name) for name in rest if name.isdecimal())
    shown = sorted({ks[0], ks[len(ks) // 2], ks[-1]}) if ks else []
    found = (
        _held_out_line(index, f"{prefix}{k}", f"pass@{k}", style, axis)
        for k, style in zip(shown, ("s1", "s2", "s3"), strict=False)
    )
    return [line for line in found if line is not None]


def _held_out_line(
    index: RunIndex, name: str, label: str, style: str, axis: Sequence[int]
) -> dict[str, Any] | None:
    steps = sorted(index.held_out)

    def values(metric: str) -> list[float | None]:
        found = [index.held_out[step].metrics.get(metric) for step in steps]
        return _spread(steps, found, axis)

    if all(value is None for value in values(name)):
        return None
    return {
        "label": label,
        "style": style,
        "sparse": True,
        "values": values(name),
        "low": values(f"{name}_low"),
        "high": values(f"{name}_high"),
    }


_HELD_OUT = {"solve_rate": _held_out_lines, "pass_at_k": _pass_at_k_lines}


def _spread(
    steps: Sequence[int], values: Sequence[float | None], axis: Sequence[int]
) -> list[float | None]:
    at = dict(zip(steps, values, strict=True))
    return [at.get(step) for step in axis]
