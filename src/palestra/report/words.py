"""Numbers and names as people read them."""

from __future__ import annotations

import math
from pathlib import Path

from palestra.learning.metrics import Interval
from palestra.learning.pass_at_k import Measure
from palestra.records import Outcome

OUTCOMES = {
    Outcome.SOLVED: "solved",
    Outcome.UNSOLVED: "unsolved",
    Outcome.TRUNCATED: "truncated",
    Outcome.MALFORMED: "malformed",
    Outcome.TAMPERED: "tampered",
    Outcome.INFRA_ERROR: "infra error",
    Outcome.FLAKY: "flaky",
}


def percent(share: float) -> str:
    """A share from 0 to 1, as ``47.5 %``."""
    return f"{100 * share:.1f} %"


def interval_words(interval: Interval) -> str:
    """An interval of a share, as ``40.7 to 54.4``, in per cent."""
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def solved_of(rate: float, interval: Interval, num_graded: float) -> str:
    """A solve rate in one phrase, as ``solved 12.5 % of 16 (95 % interval 3.5 to 36.0)``."""
    return (
        f"solved {percent(rate)} of {count(num_graded)} (95 % interval {interval_words(interval)})"
    )


def pass_words(k: int, measure: Measure) -> str:
    """Pass@k in one phrase, as ``pass@4 62.5 % of 16 tasks (95 % interval 38.6 to 81.5)``."""
    return (
        f"pass@{k} {percent(measure.share)} of {plural(measure.num_tasks, 'task')} "
        f"(95 % interval {interval_words(measure.interval)})"
    )


def count(number: float) -> str:
    """A whole number with thin spaces between thousands, as ``12 345``."""
    return f"{round(number):,}".replace(",", "\u202f")


def duration(seconds: float) -> str:
    """Seconds, as ``4.2 s``, ``4 min 54 s`` or ``2 h 5 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s} s"
    return f"{minutes // 60} h {minutes % 60} min"


def number(value: float) -> str:
    """A measured number with three digits that matter; tiny and huge ones as powers."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    size = abs(value)
    if size >= 10_000:
        return count(value)
    if size >= 100:
        return f"{value:.0f}"
    if size >= 0.0001:
        return f"{value:.3g}"
    return f"{value:.1e}".replace("e-0", "e-")


def plural(amount: float, one: str, many: str | None = None) -> str:
    """An amount with its noun, as ``1 step`` or ``80 steps``."""
    return f"{count(amount)} {one if round(amount) == 1 else many or one + 's'}"


def from_here(path: Path) -> str:
    """The path from the working directory, where it lies below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
