"""Parts of a whole over the steps: stacked areas, or bars where there are few steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from markupsafe import Markup

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

WIDTH, HEIGHT = 360.0, 210.0
_BARS_UP_TO = 16
_GAP_PX = 13.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One part: its name, its fill class, and its value at each step."""

    name: str
    fill: str
    values: Sequence[float]


def stack_chart(
    title: str,
    steps: Sequence[int],
    layers: Sequence[Layer],
    *,
    show: Callable[[float], str],
    is_count: bool = False,
) -> Markup:
    """Draw layers from the bottom up; parts that are 0 at every step must be left out.

    Args:
        title: read out.
        steps: in order; at least one.
        layers: at least one, each with a value for each step.
        show: how a value is written.
        is_count: values are whole numbers, so the axis has no halves.
    """
    totals = [sum(layer.values[i] for layer in layers) for i in range(len(steps))]
    marks = ticks(0.0, max(*totals, 1e-9), smallest=float(is_count))
    if abs(max(totals) - 1.0) < 1e-6:
        marks = (0.0, 0.25, 0.5, 0.75, 1.0)
    labels = tick_labels(marks, show)
    names = [f"{layer.name} {show(layer.values[-1])}" for layer in layers]
    frame = Frame(
        left=max(map(text_width, labels)) + 9,
        top=10,
        right=WIDTH - max(map(text_width, names)) - 14,
        bottom=HEIGHT - 34,
    )
    is_bars = len(steps) <= _BARS_UP_TO
    pad = 0.5 if is_bars else 0.0
    x = Scale(
        low=steps[0] - pad, high=steps[-1] + pad, at_low_px=frame.left, at_high_px=frame.right
    )
    y = Scale(low=0.0, high=marks[-1], at_low_px=frame.bottom, at_high_px=frame.top)
    root = drawing(WIDTH, HEIGHT, title=title, description=_read_out(steps, layers, show))
    grid(root, frame, y, marks, labels)
    draw = _bars if is_bars else _areas
    draw(root, steps, layers, x, y, show)
    step_axis(root, frame, x, steps)
    _label(root, frame, layers, names, y)
    return to_markup(root)


def _edges(layers: Sequence[Layer], index: int) -> list[float]:
    """Where the layers begin and end at a step, from 0 up."""
    edges = [0.0]
    for layer in layers:
        edges.append(edges[-1] + layer.values[index])
    return edges


def _areas(
    root: Element,
    steps: Sequence[int],
    layers: Sequence[Layer],
    x: Scale,
    y: Scale,
    show: Callable[[float], str],
) -> None:
    edges = [_edges(layers, index) for index in range(len(steps))]
    for number, layer in enumerate(layers):
        upper = [f"{x(s):g},{y(e[number + 1]):g}" for s, e in zip(steps, edges, strict=True)]
        lower = [f"{x(s):g},{y(e[number]):g}" for s, e in zip(steps, edges, strict=True)]
        area = add(root, "polygon", class_=layer.fill, points=" ".join(upper + lower[::-1]))
        add(area, "title", text=f"{layer.name}: {show(layer.values[-1])} at step {steps[-1]}")


def _bars(
    root: Element,
    steps: Sequence[int],
    layers: Sequence[Layer],
    x: Scale,
    y: Scale,
    show: Callable[[float], str],
) -> None:
    width = min(40.0, 0.72 * (x(steps[0] + 1) - x(steps[0])))
    for index, step in enumerate(steps):
        edges = _edges(layers, index)
        for number, layer in enumerate(layers):
            height = y(edges[number]) - y(edges[number + 1])
            if height <= 0:
                continue
            bar = add(
                root,
                "rect",
                class_=layer.fill,
                x=round(x(step) - width / 2, 1),
                y=y(edges[number + 1]),
                width=round(width, 1),
                height=round(height, 1),
            )
            add(bar, "title", text=f"step {step}: {layer.name} {show(layer.values[index])}")


def _label(
    root: Element, frame: Frame, layers: Sequence[Layer], names: Sequence[str], y: Scale
) -> None:
    edges = _edges(layers, -1)
    middles = [y((edges[i] + edges[i + 1]) / 2) for i in range(len(layers))]
    # Layers rise, so the last is the highest: labels are placed from the top down.
    places = spread(middles[::-1], gap=_GAP_PX, low=frame.top + 2, high=frame.bottom)[::-1]
    for layer, name, place in zip(layers, names, places, strict=True):
        add(
            root,
            "rect",
            class_=layer.fill,
            x=frame.right + 4,
            y=round(place - 4, 1),
            width=5,
            height=8,
        )
        add(root, "text", class_="end", x=frame.right + 13, y=round(place + 3.8, 1), text=name)


def _read_out(steps: Sequence[int], layers: Sequence[Layer], show: Callable[[float], str]) -> str:
    first = ", ".join(f"{layer.name} {show(layer.values[0])}" for layer in layers)
    last = ", ".join(f"{layer.name} {show(layer.values[-1])}" for layer in layers)
    return f"At step {steps[0]}: {first}. At step {steps[-1]}: {last}"
