"""Which charts a run has data for; a chart without any is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from palestra.learning.rollouts.filters import DropReason
from palestra.records import Outcome
from palestra.report.comparison import Comparison
from palestra.report.curves import SMOOTH_FROM, Point, Series, curve_chart
from palestra.report.run_record import RunRecord
from palestra.report.stacks import Layer, stack_chart
from palestra.report.words import OUTCOMES, count, number

_ENOUGH_FOR_A_CURVE = 3

REASONS = {
    DropReason.ALL_EQUAL: "all equal",
    DropReason.ABORTED: "aborted",
    DropReason.STALE: "stale",
    DropReason.NO_TOKENS: "no tokens",
    DropReason.OVERLONG: "over-long",
    DropReason.FLAKY: "flaky",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A chart with its heading and a sentence on how to read it."""

    heading: str
    note: str
    chart: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class _Curve:
    metric: str
    heading: str
    note: str
    show: Callable[[float], str] = number
    low: float | None = None
    high: float | None = None
    reference: float | None = None


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def _fine_percent(share: float) -> str:
    return f"{100 * share:.3g} %"


_CURVES = (
    _Curve(
        metric="train/entropy",
        heading="Entropy",
        note="Of the policy where it sampled, in nats an id; towards 0 it stops exploring.",
        low=0.0,
    ),
    _Curve(
        metric="train/kl_loss",
        heading="KL to the starting policy",
        note="As training.kl estimates it, in nats an id.",
        low=0.0,
    ),
    _Curve(
        metric="train/grad_norm",
        heading="Gradient norm",
        note="Before it is clipped.",
        low=0.0,
    ),
    _Curve(
        metric="train/mis_tis_weight_before_bound",
        heading="Importance ratio",
        note="Trainer to engine, mean over ids; 1 where both agree.",
        low=0.99,
        high=1.01,
        reference=1.0,
    ),
    _Curve(
        metric="rollout/sampled_tokens_mean",
        heading="Sampled ids an episode",
        note="Mean over the episodes of a step.",
        low=0.0,
    ),
    _Curve(
        metric="agent/turns_mean",
        heading="Turns an episode",
        note="Mean over the episodes of a step.",
        low=0.0,
    ),
    _Curve(
        metric="time/step_s",
        heading="Seconds a step",
        note="Episodes, training and publishing.",
        low=0.0,
    ),
)


def learning_figures(record: RunRecord, comparisons: Sequence[Comparison]) -> tuple[Figure, ...]:
    """What was solved: in training by step, and held out in between."""
    figures = []
    solved = record.series("solve_rate")
    if solved:
        figures.append(
            Figure(
                heading="Solve rate in training",
                note="Share of each step's episodes."
                + (" Dots are steps, the line is a moving mean." * (len(solved) >= SMOOTH_FROM)),
                chart=curve_chart(
                    "Solve rate in training",
                    [Series(name="", points=_points(solved))],
                    show=_percent,
                    low=0.0,
                ),
            )
        )
    held_out = _held_out(comparisons)
    if held_out is not None:
        figures.append(held_out)
    rewards = record.series("reward/mean")
    if rewards and rewards != solved:
        figures.append(
            Figure(
                heading="Reward",
                note="Mean over the episodes of a step that have one.",
                chart=curve_chart("Reward", [Series(name="", points=_points(rewards))], low=0.0),
            )
        )
    figures += [figure for figure in (outcome_figure(record), group_figure(record)) if figure]
    return tuple(figures)


def health_figures(record: RunRecord) -> tuple[Figure, ...]:
    """How training went: entropy, norms, ratios and lengths over the steps."""
    figures = [_curve_figure(record, curve) for curve in _CURVES]
    figures.insert(4, _masked_figure(record))
    return tuple(figure for figure in figures if figure is not None)


def outcome_figure(record: RunRecord) -> Figure | None:
    """Shares of outcomes by step; ``None`` without any."""
    rows = [row for row in record.steps if "outcome/solved" in row.metrics]
    layers = [
        Layer(
            name=OUTCOMES[outcome],
            fill=f"fill {outcome.value}",
            values=[row.metrics.get(f"outcome/{outcome.value}", 0.0) for row in rows],
        )
        for outcome in Outcome
    ]
    return _stack(
        "How episodes ended",
        "Share of each step's episodes; the labels are those of the last step.",
        [row.step for row in rows],
        layers,
        _percent,
    )


def group_figure(record: RunRecord) -> Figure | None:
    """Groups kept and dropped by step; ``None`` without any."""
    rows = [row for row in record.steps if "rollout/groups_kept" in row.metrics]
    layers = [
        Layer(
            name="kept",
            fill="fill kept",
            values=[row.metrics["rollout/groups_kept"] for row in rows],
        ),
        *(
            Layer(
                name=words,
                fill=f"fill {reason.value}",
                values=[row.metrics.get(f"rollout/dropped_{reason.value}", 0.0) for row in rows],
            )
            for reason, words in REASONS.items()
        ),
    ]
    return _stack(
        "Groups kept and dropped",
        "Kept groups are trained on; “all equal” ones carry no signal.",
        [row.step for row in rows],
        layers,
        count,
    )


def _stack(
    heading: str,
    note: str,
    steps: Sequence[int],
    layers: Sequence[Layer],
    show: Callable[[float], str],
) -> Figure | None:
    present = [layer for layer in layers if any(layer.values)]
    if not present:
        return None
    chart = stack_chart(heading, steps, present, show=show, is_count=show is count)
    return Figure(heading=heading, note=note, chart=chart)


def _curve_figure(record: RunRecord, curve: _Curve) -> Figure | None:
    values = record.series(curve.metric)
    if not values:
        return None
    chart = curve_chart(
        curve.heading,
        [Series(name="", points=_points(values))],
        show=curve.show,
        low=curve.low,
        high=curve.high,
        reference=curve.reference,
    )
    return Figure(heading=curve.heading, note=curve.note, chart=chart)


def _masked_figure(record: RunRecord) -> Figure | None:
    """Share of ids that the correction masks or bounds, whichever mode it ran in."""
    named = [
        name
        for name in (
            "train/mis_tis_mask_fraction",
            "train/mis_tis_clip_fraction",
            "train/mis_tis_truncate_fraction",
        )
        if any(key.startswith(name) for row in record.steps for key in row.metrics)
    ]
    if not named:
        return None
    points = [
        Point(
            step=row.step,
            value=sum(v for key, v in row.metrics.items() if key.startswith(named[0])),
        )
        for row in record.steps
        if any(key.startswith(named[0]) for key in row.metrics)
    ]
    what = named[0].removeprefix("train/mis_tis_").removesuffix("_fraction")
    heading = {"mask": "Ids masked", "clip": "Ids clipped", "truncate": "Ids truncated"}[what]
    chart = curve_chart(heading, [Series(name="", points=points)], show=_fine_percent, low=0.0)
    note = "Share whose importance ratio is out of bounds."
    return Figure(heading=heading, note=note, chart=chart)


def _held_out(comparisons: Sequence[Comparison]) -> Figure | None:
    series = [
        Series(
            name=comparison.mode,
            style=number + 1,
            smooth=False,
            points=[
                Point(step=m.step, value=m.rate, interval=m.interval)
                for m in comparison.all_of_mode
                if m.rate is not None
            ],
        )
        for number, comparison in enumerate(comparisons)
    ]
    shown = [one for one in series if one.points]
    if not any(len(one.points) >= _ENOUGH_FOR_A_CURVE for one in shown):
        return None  # before and after stand at the top of the page
    chart = curve_chart("Held-out solve rate", shown, show=_percent, low=0.0)
    note = "With 95 % intervals; greedy and sampled see the same tasks."
    if any(m.evaluation.background for c in comparisons for m in c.all_of_mode):
        note += (
            " Those in between ran beside training, on the weights of their step and newer ones."
        )
    return Figure(heading="Held-out solve rate", note=note, chart=chart)


def _points(values: Sequence[tuple[int, float]]) -> list[Point]:
    return [Point(step=step, value=value) for step, value in values]
