"""Which bugs are tried, in which order; pure, and the same for the same seed.

First single bugs from all modules of a project. Harder tasks are put together from single bugs
that each made tests fail, so that every place that a task asks to mend can be seen to be wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from types import MappingProxyType

from palestra.errors import TaskError
from palestra.forge.mutants import Mutant, Site, mutants
from palestra.forge.source import Source
from palestra.tasks.katas.draw import Draw

MAX_PER_FUNCTION = 4
"""Single bugs of one function; further ones would be the same task in other clothes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """Bugs that are to be tried, by path of the module."""

    mutants: Mapping[str, Mutant]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mutants", MappingProxyType(dict(sorted(self.mutants.items()))))

    @property
    def key(self) -> str:
        """Names the bugs; equal ones in equal projects have equal keys."""
        return " ".join(f"{path}:{mutant.id}" for path, mutant in self.mutants.items())

    @property
    def num_sites(self) -> int:
        """How many places are wrong."""
        return sum(len(mutant.sites) for mutant in self.mutants.values())

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each bug, sorted."""
        return tuple(sorted(site.kind for m in self.mutants.values() for site in m.sites))


def singles(modules: Mapping[str, bytes], *, seed: str) -> Iterator[Draft]:
    """Single bugs from all modules, larger ones more often, few from any one function.

    Args:
        modules: path → text. What is no Python is passed over.
        seed: draws the order.
    """
    draw = Draw(f"forge singles {seed}")
    sources = {path: source for path, data in sorted(modules.items()) if (source := _parsed(data))}
    left = {path: mutants(source, seed=f"{seed} {path}") for path, source in sources.items()}
    sizes = {path: sum(1 for _ in source.functions()) for path, source in sources.items()}
    taken: Counter[tuple[str, str]] = Counter()
    while left:
        total = sum(sizes[path] or 1 for path in left)
        path = draw.weighted({path: (sizes[path] or 1) / total for path in left})
        mutant = next(left[path], None)
        if mutant is None:
            del left[path]
            continue
        place = (path, function_at(sources[path], mutant.sites[0].edit.start))
        taken[place] += 1
        if taken[place] <= MAX_PER_FUNCTION:
            yield Draft(mutants={path: mutant})


def combined(
    pool: Sequence[Draft], *, num_bugs: int, num_files: int, seed: str, tries: int
) -> Iterator[Draft]:
    """Several single bugs at once, no two of one place, no combination twice.

    Args:
        pool: single bugs that made tests fail.
        num_bugs: in one draft.
        num_files: that they lie in.
        seed: draws them.
        tries: how often is drawn at most.
    """
    draw = Draw(f"forge combined {num_bugs} {num_files} {seed}")
    by_path: dict[str, list[Draft]] = {}
    for draft in pool:
        by_path.setdefault(next(iter(draft.mutants)), []).append(draft)
    seen: set[str] = set()
    for _ in range(tries):
        paths = draw.sample(sorted(by_path), num_files)
        if len(paths) < num_files or num_bugs < num_files:
            return
        drawn = [draw.pick(by_path[path]) for path in paths]
        rest = [draft for path in paths for draft in by_path[path] if draft not in drawn]
        drawn += draw.sample(rest, num_bugs - num_files)
        joined = _joined(drawn) if len(drawn) == num_bugs else None
        if joined is not None and joined.key not in seen:
            seen.add(joined.key)
            yield joined


def function_at(source: Source, offset: int) -> str:
    """Name and first line of the innermost function around a byte; empty outside of any."""
    name = ""
    for function in source.functions():  # in the order of the text: inner ones come later
        start, end = source.span(function)
        if start <= offset < end:
            name = f"{function.name}:{function.lineno}"
    return name


def take(drafts: Iterator[Draft], n: int, *, but: Collection[str] = ()) -> tuple[Draft, ...]:
    """The first ``n`` whose keys are not among ``but``."""
    return tuple(islice((draft for draft in drafts if draft.key not in but), n))


def _joined(drafts: Sequence[Draft]) -> Draft | None:
    """All bugs of ``drafts``; ``None`` where two of them touch."""
    sites: dict[str, list[Site]] = {}
    for draft in drafts:
        for path, mutant in draft.mutants.items():
            sites.setdefault(path, []).extend(mutant.sites)
    joined = {}
    for path, found in sites.items():
        ordered = sorted(found, key=lambda site: site.edit)
        if any(other.edit.start <= one.edit.end for one, other in pairwise(ordered)):
            return None
        joined[path] = Mutant(sites=tuple(ordered))
    return Draft(mutants=joined)


def _parsed(data: bytes) -> Source | None:
    try:
        return Source.parse(data)
    except TaskError:
        return None
