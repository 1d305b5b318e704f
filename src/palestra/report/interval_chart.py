"""Held-out solve rates before and after: a dot on its interval, one chart a mode."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from markupsafe import Markup

from palestra.report.comparison import Comparison, Measured
from palestra.report.svg import Scale, add, drawing, to_markup
from palestra.report.words import interval_words, percent

WIDTH = 480.0
_LEFT, _RIGHT = 58.0, 468.0
_ROW_PX = 46.0


def interval_chart(comparison: Comparison) -> Markup:
    """Draw what was measured of a mode; at least one end must have a rate."""
    ends = (("before", comparison.before), ("after", comparison.after))
    rows = [(name, m) for name, m in ends if m is not None and m.rate is not None]
    bottom = 10 + _ROW_PX * len(rows)
    told = "; ".join(f"{name} {_told(measured)}" for name, measured in rows)
    root = drawing(
        WIDTH,
        bottom + 26,
        title=f"Held-out solve rate, {comparison.mode}",
        description=told,
    )
    x = Scale(low=0, high=1, at_low_px=_LEFT, at_high_px=_RIGHT)
    for share in (0, 0.25, 0.5, 0.75, 1):
        add(root, "line", class_="grid", x1=x(share), x2=x(share), y1=6, y2=bottom)
        anchor = "end" if share == 1 else "middle"
        add(
            root,
            "text",
            class_="tick big",
            x=x(share),
            y=bottom + 18,
            text_anchor=anchor,
            text=f"{share:.0%}".replace("%", " %"),
        )
    for index, (name, measured) in enumerate(rows):
        _row(root, x, name, measured, 10 + _ROW_PX * (index + 0.5))
    return to_markup(root)


def _row(root: Element, x: Scale, name: str, measured: Measured, middle: float) -> None:
    assert measured.rate is not None
    assert measured.interval is not None
    low, high = x(measured.interval.low), x(measured.interval.high)
    at = x(measured.rate)
    line_y = middle + 8
    add(root, "text", class_="row", x=0.0, y=line_y + 4.5, text=name)
    add(root, "line", class_=f"interval {name}", x1=low, x2=high, y1=line_y, y2=line_y)
    for end in (low, high):
        add(root, "line", class_=f"cap {name}", x1=end, x2=end, y1=line_y - 6, y2=line_y + 6)
    add(root, "circle", class_=f"rate {name}", cx=at, cy=line_y, r=6.5)
    text = percent(measured.rate)
    half = len(text) * 3.9
    add(
        root,
        "text",
        class_="value",
        x=round(min(max(at, _LEFT + half), _RIGHT - half), 1),
        y=round(line_y - 13, 1),
        text_anchor="middle",
        text=text,
    )


def _told(measured: Measured) -> str:
    assert measured.rate is not None
    assert measured.interval is not None
    return f"{percent(measured.rate)}, 95 % interval {interval_words(measured.interval)}"
