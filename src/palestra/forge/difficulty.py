"""How hard a task is: before anybody tried it, and after."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from palestra.errors import TaskError
from palestra.forge.mutants import Mutant, Site
from palestra.forge.records import Candidate, Difficulty, Failure
from palestra.forge.source import Source
from palestra.tasks.difficulty import (
    NUM_LEVELS,
    PRIOR_ATTEMPTS,
    PRIOR_SOLVE_RATES,
    nearest_level,
)

# Each reaches one point more from each of its bounds on.
_LINES_TO_READ = (20, 30, 45, 80, 150)
_LINES_TO_WRITE = (4, 10)
_SITES = (2, 3, 4)
_FILES = (2,)
_POINTS_OF_A_HIDDEN_TRACE = 2
_FAR = 2
# Levels 2, 3, 4 and 5 begin at so many points.
_LEVELS = (2, 3, 5, 7)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Span:
    """The lines of a function in a module, counted from 1, both included."""

    path: str
    name: str
    first: int
    last: int

    def holds(self, line: int) -> bool:
        return self.first <= line <= self.last


def measure(candidate: Candidate, modules: Mapping[str, bytes]) -> Difficulty:
    """Measure a candidate.

    Points are given for lines to read (from 20, 30, 45, 80, 150: one each), for lines that must be
    written anew because a bug took them away (from 4, 10), for places (from 2, 3, 4), for more
    than one file, and for how far a traceback leads away from the bug (two where none shows
    its file or it ends two calls or more elsewhere, one for a single call). The levels 2 to 5
    begin at 2, 3, 5 and 7 points.

    Args:
        candidate: the bugs and what they did.
        modules: path → text with the bugs, of the modules that have any at least.
    """
    spans = {path: tuple(_functions(path, data)) for path, data in modules.items()}
    wrong = {
        span
        for path, mutant in candidate.mutants.items()
        for line in _lines_of(mutant, modules[path])
        for span in [_innermost(spans[path], path, line)]
    }
    passed = {
        _innermost(spans[frame.path], frame.path, frame.line)
        for failure in candidate.failures
        for frame in failure.frames
        if frame.path in spans
    }
    found = (_distance(f, wrong) for f in candidate.failures)
    distances = [near for near in found if near is not None]
    sites = [site for mutant in candidate.mutants.values() for site in mutant.sites]
    lines_to_read = sum(span.last - span.first + 1 for span in wrong | passed)
    trace_distance = min(distances) if distances else None
    points = (
        bisect_right(_LINES_TO_READ, lines_to_read)
        + bisect_right(_LINES_TO_WRITE, max(_lines_to_write(site) for site in sites))
        + bisect_right(_SITES, len(sites))
        + bisect_right(_FILES, len(candidate.mutants))
        + _points_of_trace(trace_distance)
    )
    return Difficulty(
        num_sites=len(sites),
        num_files=len(candidate.mutants),
        lines_to_read=lines_to_read,
        trace_distance=trace_distance,
        num_failing=len(candidate.failing),
        level=1 + bisect_right(_LEVELS, points),
    )


def relevel(level: int, solved: int, attempts: int) -> int:
    """The level of a task that was tried.

    The share of attempts that solve it is a Beta variable whose mean is that of the measured
    level (0.9, 0.7, 0.5, 0.3, 0.1) and whose weight is four attempts; the level is the one
    whose share is nearest to the mean after the attempts, the harder of two.

    Args:
        level: as measured, 1 to 5.
        solved: attempts that solved it.
        attempts: of any policies that this level shall speak of.

    Raises:
        ValueError: there is no such level, or more solved than tried.
    """
    if not 1 <= level <= NUM_LEVELS:
        raise ValueError(f"a level is 1 to {NUM_LEVELS}, not {level}")
    if not 0 <= solved <= attempts:
        raise ValueError(f"{solved} of {attempts} attempts cannot have solved it")
    prior = PRIOR_SOLVE_RATES[level - 1] * PRIOR_ATTEMPTS
    return nearest_level((prior + solved) / (PRIOR_ATTEMPTS + attempts))


def _distance(failure: Failure, wrong: set[_Span]) -> int | None:
    """Calls between the innermost frame and the bug's function, as `Difficulty` has it."""
    # From another function of the file it is one call more at least.
    near = (
        calls if span.holds(frame.line) else calls + 1
        for calls, frame in enumerate(reversed(failure.frames))
        for span in wrong
        if span.path == frame.path
    )
    return min(near, default=None)


def _points_of_trace(calls: int | None) -> int:
    return _POINTS_OF_A_HIDDEN_TRACE if calls is None or calls >= _FAR else calls


def _functions(path: str, data: bytes) -> Iterator[_Span]:
    try:
        source = Source.parse(data)
    except TaskError:
        return
    for node in source.functions():
        last = node.end_lineno or node.lineno
        yield _Span(path=path, name=node.name, first=node.lineno, last=last)


def _innermost(spans: Sequence[_Span], path: str, line: int) -> _Span:
    """The function around a line; the line alone where there is none."""
    around = [span for span in spans if span.holds(line)]
    alone = _Span(path=path, name="", first=line, last=line)
    return max(around, key=lambda span: span.first, default=alone)


def _lines_of(mutant: Mutant, data: bytes) -> Iterator[int]:
    """The line that each bug begins in, in the text with the bugs."""
    moved = 0
    for site in mutant.sites:
        start = site.edit.start + moved
        yield data.count(b"\n", 0, start) + 1
        moved += len(site.edit.new) - len(site.edit.old)


def _lines_to_write(site: Site) -> int:
    return max(0, site.edit.old.count(b"\n") - site.edit.new.count(b"\n"))
