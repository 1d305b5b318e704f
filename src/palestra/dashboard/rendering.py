"""Templates, and how numbers and strangers' text are written in them."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import orjson
from jinja2 import Environment, FunctionLoader, StrictUndefined
from starlette.responses import Response

from palestra.report.visible import diff_line, shown
from palestra.report.words import OUTCOMES, count, duration, number, percent

ABSENT = "\N{EN DASH}"
_OUTCOME_WORDS = {outcome.value: words for outcome, words in OUTCOMES.items()}


def render(template: str, **context: Any) -> bytes:
    """A page; text that is no UTF-8 comes out as question marks."""
    page = _environment().get_template(template).render(context)
    return page.encode("utf-8", "replace")


def to_json(body: Any) -> Response:
    """Data as an answer."""
    return Response(orjson.dumps(body), media_type="application/json")


def value_of(value: float | None, unit: str) -> str:
    """A metric as people read it; a dash where it is absent."""
    if value is None:
        return ABSENT
    show = {"share": percent, "seconds": duration, "count": count}.get(unit, number)
    return show(value)


def short_seconds(value: float | None) -> str:
    """Seconds with as many digits as matter; a dash where unknown."""
    if value is None:
        return ABSENT
    if value < 1:
        return f"{1000 * value:.0f} ms"
    return duration(value)


def when(time_s: float | None) -> str:
    """A moment in UTC."""
    if time_s is None:
        return ABSENT
    return datetime.fromtimestamp(time_s, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")


def outcome_words(outcome: str) -> str:
    """An outcome as people read it."""
    return _OUTCOME_WORDS.get(outcome, outcome)


def in_url(text: Any) -> str:
    """A part of an address."""
    return quote(str(text).encode("utf-8", "replace"), safe="")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {
        "shown": lambda text: shown(str(text)),
        "diff_line": diff_line,
        "percent": percent,
        "duration": duration,
        "seconds": short_seconds,
        "count": count,
        "number": number,
        "value": value_of,
        "when": when,
        "outcome": outcome_words,
        "in_url": in_url,
    }
    return environment


def _template(name: str) -> str:
    return files("palestra.dashboard").joinpath("templates", name).read_text(encoding="utf-8")
