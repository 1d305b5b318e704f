"""The table of the kinds of bugs, and drawing bugs for a module from a seed."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from palestra.errors import TaskError
from palestra.forge import expressions, statements
from palestra.forge.source import Edit, Source
from palestra.tasks.katas.draw import Draw

KINDS: Mapping[str, Callable[[Source], Iterator[Edit]]] = {
    find.__name__: find
    for find in (
        expressions.operator,
        expressions.comparison,
        expressions.boundary,
        expressions.off_by_one,
        expressions.wrong_constant,
        expressions.swapped_arguments,
        expressions.dropped_argument,
        expressions.dropped_condition,
        expressions.inverted_branch,
        expressions.dropped_unary,
        expressions.dropped_call,
        expressions.lost_edge_case,
        statements.removed_guard,
        statements.wrong_exception,
        statements.shuffled_lines,
        statements.stale_cache,
        statements.removed_body,
        statements.loop_exit,
        statements.lost_branch,
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One edit that makes a bug of one kind."""

    kind: str
    edit: Edit


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A module with one or more bugs, its sites in the order of the text."""

    sites: tuple[Site, ...]

    def apply(self, data: bytes) -> bytes:
        """Seed the bugs into ``data``.

        Raises:
            TaskError: ``data`` is not the module that the mutant was made for.
        """
        for site in reversed(self.sites):
            data = site.edit.apply(data)
        return data

    def undo(self, data: bytes) -> bytes:
        """Give the original back.

        Raises:
            TaskError: ``data`` is not this mutant.
        """
        for site in self.sites:
            data = site.edit.reversed().apply(data)
        return data

    @property
    def id(self) -> str:
        """Twelve hex digits that name the edits; equal bugs of one module have equal ids."""
        edits = [(site.edit.start, site.edit.end, site.edit.new) for site in self.sites]
        return hashlib.sha256(repr(edits).encode()).hexdigest()[:12]


def sites(source: Source) -> tuple[Site, ...]:
    """All sites of all kinds, in the order of the text, no two with the same edit.

    An edit that two kinds find is the site of the kind that is first in `KINDS`.
    """
    found: dict[Edit, str] = {}
    for kind, find in KINDS.items():
        for edit in find(source):
            if edit.new != edit.old:
                found.setdefault(edit, kind)
    return tuple(Site(kind=found[edit], edit=edit) for edit in sorted(found))


def mutants(source: Source, *, seed: str, level: int = 1) -> Iterator[Mutant]:
    """Draw mutants of ``source``, no two equal, until its sites are used up.

    Kinds are drawn first, so that one with few sites is not rarer than one with many.
    Each mutant has ``level`` sites that do not touch; each site is used once.

    Raises:
        TaskError: ``level`` is below 1.
    """
    if level < 1:
        raise TaskError(f"a mutant has at least one site, not {level}")
    draw = Draw(f"mutants {seed}")
    original = ast.dump(source.tree)
    left: dict[str, list[Site]] = {}
    for site in sites(source):
        left.setdefault(site.kind, []).append(site)
    taken: list[Site] = []
    while left:
        kinds = list(left)
        kind = kinds[draw.below(len(kinds))]
        site = left[kind].pop(draw.below(len(left[kind])))
        if not left[kind]:
            del left[kind]
        if any(_touch(site.edit, other.edit) for other in taken):
            continue
        if not _differs(site.edit.apply(source.data), original):
            continue
        taken.append(site)
        if len(taken) == level:
            made = Mutant(sites=tuple(sorted(taken, key=lambda s: s.edit)))
            taken = []
            if level == 1 or _differs(made.apply(source.data), original):
                yield made


def _touch(one: Edit, other: Edit) -> bool:
    return one.start <= other.end and other.start <= one.end


def _differs(data: bytes, original: str) -> bool:
    """Whether ``data`` is Python, and other Python than the dumped tree ``original``."""
    try:
        tree = ast.parse(data.decode("utf-8"))
        compile(tree, "mutant", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError):
        return False
    return ast.dump(tree) != original
