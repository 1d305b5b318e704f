"""A metric over the steps: every value as a dot, and a smoothed line through them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from markupsafe import Markup

from palestra.learning.metrics import Interval
from palestra.report.svg import (
    Frame,
    Scale,
    add,
    drawing,
    grid,
    spread,
    step_axis,
    text_width,
    tick_labels,
    ticks,
    to_markup,
)
from palestra.report.words import number

WIDTH, HEIGHT = 360.0, 190.0
SMOOTH_FROM = 8
"""Fewer values are joined as they are."""
_MAX_DOTS = 600
_GAP_PX = 13.0
_ASIDE_PX = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A value at a step, with its interval where there is one."""

    step: int
    value: float
    interval: Interval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A line: its name, its points by step, and which of the styles s1, s2, … it wears."""

    name: str
    points: Sequence[Point]
    style: int = 1
    smooth: bool = True


def curve_chart(
    title: str,
    series: Sequence[Series],
    *,
    show: Callable[[float], str] = number,
    low: float | None = None,
    high: float | None = None,
    reference: float | None = None,
) -> Markup:
    """Draw one or more series over the same steps.

    Args:
        title: read out.
        series: at least one, each with at least one point.
        show: how a value is written.
        low: the axis goes down to this at least.
        high: the axis goes up to this at least.
        reference: a value that a dashed line marks.
    """
    points = [point for one in series for point in one.points]
    bounds = _bounds(points, [v for v in (low, high, reference) if v is not None])
    marks = ticks(*bounds)
    labels = tick_labels(marks, show)
    ends = [_end_label(one, show) for one in series]
    frame = Frame(
        left=max(map(text_width, labels)) + 9,
        top=10,
        right=WIDTH - max(map(text_width, ends)) - 8 - _ASIDE_PX * len(series),
        bottom=HEIGHT - 34,
    )
    steps = sorted({point.step for point in points})
    pad = 0.5 if len(steps) == 1 else 0.0
    x = Scale(
        low=steps[0] - pad, high=steps[-1] + pad, at_low_px=frame.left + 5, at_high_px=frame.right
    )
    y = Scale(low=marks[0], high=marks[-1], at_low_px=frame.bottom, at_high_px=frame.top)
    root = drawing(WIDTH, HEIGHT, title=title, description=_read_out(series, show))
    grid(root, frame, y, marks, labels)
    step_axis(root, frame, x, steps)
    if reference is not None:
        _reference(root, frame, y(reference))
    for place, one in enumerate(series):
        # Side by side, so that whiskers at the same step do not hide one another.
        aside = dataclasses.replace(
            x,
            at_low_px=x.at_low_px + _ASIDE_PX * place,
            at_high_px=x.at_high_px + _ASIDE_PX * place,
        )
        _line(root, one, aside, y, show)
    _label_ends(root, frame, series, ends, y)
    return to_markup(root)


def smoothed(values: Sequence[float]) -> list[float]:
    """A centred moving mean over about a tenth of the values, narrower at both ends."""
    reach = max(1, len(values) // 20)
    means = []
    for index in range(len(values)):
        near = min(reach, index, len(values) - 1 - index)
        window = values[index - near : index + near + 1]
        means.append(sum(window) / len(window))
    return means


def _is_smooth(series: Series) -> bool:
    return series.smooth and len(series.points) >= SMOOTH_FROM


def _drawn(series: Series) -> list[float]:
    values = [point.value for point in series.points]
    return smoothed(values) if _is_smooth(series) else values


def _end_label(series: Series, show: Callable[[float], str]) -> str:
    return f"{series.name} {show(series.points[-1].value)}".strip()


def _bounds(points: Sequence[Point], least: Sequence[float]) -> tuple[float, float]:
    values = [p.value for p in points] + list(least)
    values += [end for p in points if p.interval for end in (p.interval.low, p.interval.high)]
    low, high = min(values), max(values)
    if high - low >= 1e-9 * max(1.0, abs(high)):
        return low, high
    # All values are equal: some room on the side where values can be.
    room = abs(high) * 0.1 or 0.01
    return (low, high + room) if low in least else (low - room, high + room)


def _reference(root: Element, frame: Frame, at_px: float) -> None:
    add(root, "line", class_="reference", x1=frame.left, x2=frame.right, y1=at_px, y2=at_px)


def _line(root: Element, series: Series, x: Scale, y: Scale, show: Callable[[float], str]) -> None:
    style = f"s{series.style}"
    is_smooth = _is_smooth(series)
    for point in series.points:
        if point.interval is not None:
            low, high = point.interval.low, point.interval.high
            at = x(point.step)
            add(root, "line", class_=f"whisker {style}", x1=at, x2=at, y1=y(low), y2=y(high))
    if len(series.points) > 1:
        places = zip(series.points, _drawn(series), strict=True)
        path = " ".join(f"{x(p.step):g},{y(value):g}" for p, value in places)
        add(root, "polyline", class_=f"line {style}", points=path)
    # Of a long run the line is enough: dots would only make the page heavy.
    for point in series.points if len(series.points) <= _MAX_DOTS else ():
        dot = add(
            root,
            "circle",
            class_=f"dot {style}{' faint' if is_smooth else ''}",
            cx=x(point.step),
            cy=y(point.value),
            r=1.7 if is_smooth else 3.2,
        )
        add(dot, "title", text=f"step {point.step}: {series.name} {show(point.value)}")


def _label_ends(
    root: Element, frame: Frame, series: Sequence[Series], labels: Sequence[str], y: Scale
) -> None:
    ranked = sorted(range(len(series)), key=lambda i: y(_drawn(series[i])[-1]))
    wanted = [y(_drawn(series[i])[-1]) for i in ranked]
    places = spread(wanted, gap=_GAP_PX, low=frame.top, high=frame.bottom)
    for index, place in zip(ranked, places, strict=True):
        add(
            root,
            "text",
            class_=f"end s{series[index].style}",
            x=frame.right + 4 + _ASIDE_PX * len(series),
            y=place + 3.8,
            text=labels[index],
        )


def _read_out(series: Sequence[Series], show: Callable[[float], str]) -> str:
    parts = []
    for one in series:
        first, last = one.points[0], one.points[-1]
        parts.append(
            f"{one.name or 'It'} goes from {show(first.value)} at step {first.step} "
            f"to {show(last.value)} at step {last.step}"
            if len(one.points) > 1
            else f"{one.name or 'It'} is {show(first.value)} at step {first.step}"
        )
    return "; ".join(parts)
