"""Drawing in SVG: elements that escape what they hold, scales, ticks and frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

from markupsafe import Markup

FONT_PX = 11.0
CHAR_PX = 6.5
"""A generous mean width of a character at ``FONT_PX``: labels must not be clipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A linear map from values to pixels."""

    low: float
    high: float
    at_low_px: float
    at_high_px: float

    def __call__(self, value: float) -> float:
        """Where a value lies, in pixels, to a tenth."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.at_low_px + share * (self.at_high_px - self.at_low_px), 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The plot's rectangle inside a drawing, in pixels."""

    left: float
    top: float
    right: float
    bottom: float


def drawing(width: float, height: float, *, title: str, description: str) -> Element:
    """An empty drawing that scales with its place and reads itself out."""
    root = Element(
        "svg",
        {
            "viewBox": f"0 0 {width:g} {height:g}",
            "role": "img",
            "aria-label": f"{title}. {description}",
        },
    )
    add(root, "title", text=title)
    add(root, "desc", text=description)
    return root


def add(parent: Element, tag: str, *, text: str | None = None, **attributes: object) -> Element:
    """Append an element; ``class_`` and ``stroke_width`` become ``class`` and ``stroke-width``."""
    named = {key.rstrip("_").replace("_", "-"): _value(v) for key, v in attributes.items()}
    element = SubElement(parent, tag, named)
    element.text = text
    return element


def to_markup(root: Element) -> Markup:
    """The drawing as text that is safe to put into a page."""
    return Markup(tostring(root, encoding="unicode"))  # ElementTree escapes


def ticks(low: float, high: float, *, most: int = 6, smallest: float = 0.0) -> tuple[float, ...]:
    """Round values that cover ``low`` to ``high``, at most about ``most`` of them.

    Args:
        low: they begin here or below.
        high: they end here or above.
        most: about how many there may be.
        smallest: distance between two; 1 for what is counted.

    Raises:
        ValueError: there is no range between the two.
    """
    span = high - low
    if span <= 0 or not math.isfinite(span):
        raise ValueError(f"no range from {low} to {high}")
    raw = max(span / max(1, most - 1), smallest)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return tuple(round(number * step, 12) for number in range(first, last + 1))


def tick_labels(values: Sequence[float], show: Callable[[float], str]) -> list[str]:
    """The values as ``show`` writes them, or with as many digits as tell them apart."""
    labels = [show(value) for value in values]
    digits = 3
    while len(set(labels)) < len(labels) and digits < 12:
        digits += 1
        labels = [f"{value:.{digits}g}" for value in values]
    return labels


def whole_ticks(low: int, high: int, *, most: int = 6) -> tuple[int, ...]:
    """Round whole numbers inside ``low`` to ``high``; both ends where there are few."""
    if high - low < most:
        return tuple(range(low, high + 1))
    values = {int(v) for v in ticks(low, high, most=most) if float(v).is_integer()}
    return tuple(sorted(v for v in values if low <= v <= high))


def grid(
    root: Element, frame: Frame, y: Scale, values: Sequence[float], labels: Sequence[str]
) -> None:
    """Horizontal lines with their labels at the left."""
    for value, label in zip(values, labels, strict=True):
        add(root, "line", class_="grid", x1=frame.left, x2=frame.right, y1=y(value), y2=y(value))
        add(
            root,
            "text",
            class_="tick",
            x=frame.left - 6,
            y=y(value) + 3.5,
            text_anchor="end",
            text=label,
        )


def step_axis(root: Element, frame: Frame, x: Scale, steps: Sequence[int]) -> None:
    """The axis of steps below a frame."""
    add(
        root,
        "line",
        class_="axis",
        x1=frame.left,
        x2=frame.right,
        y1=frame.bottom,
        y2=frame.bottom,
    )
    for step in whole_ticks(min(steps), max(steps)):
        add(
            root,
            "text",
            class_="tick",
            x=x(step),
            y=frame.bottom + 15,
            text_anchor="middle",
            text=str(step),
        )
    add(
        root,
        "text",
        class_="tick",
        x=frame.right,
        y=frame.bottom + 29,
        text_anchor="end",
        text="step",
    )


def spread(wanted: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Places as near to ``wanted`` (rising) as a gap between neighbours allows."""
    placed: list[float] = []
    for place in wanted:
        placed.append(max(place, placed[-1] + gap) if placed else max(place, low))
    limit = high
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    return placed


def text_width(text: str) -> float:
    """About how wide a label is, in pixels."""
    return len(text) * CHAR_PX


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
