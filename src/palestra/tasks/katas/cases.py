"""Calls that tell the right code from the buggy code, found by running both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from palestra.tasks.katas.compose import Draft
from palestra.tasks.katas.draw import Draw
from palestra.tasks.katas.family import Arguments
from palestra.tasks.katas.observe import Case, define, observe

_NUM_TRIES = 24
_MAX_FLIPS = 3
_MAX_HOLDS = 2
_NUM_CALLS_OF_CALLER = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Cases:
    """The calls of a kata: the one the issue shows, and all that are tested."""

    shown: Case
    tested: tuple[Case, ...]


def find_cases(draft: Draft, draw: Draw) -> Cases | None:
    """Run the functions of ``draft``; ``None`` when no call flips or none holds."""
    right = define(*(function.source() for function in draft.functions))
    # No function calls another one, but for the caller: the rest may be shared.
    wrong = right | define(draft.target.source(draft.bug))
    if draft.caller is not None:
        exec(draft.caller.source(), right)
        exec(draft.caller.source(), wrong)
    name = draft.target.name
    arguments = [draft.target.arguments(draw) for _ in range(_NUM_TRIES)]
    direct = _run(name, arguments, right, wrong)
    flips = [case for case in direct if case.flips][:_MAX_FLIPS]
    if not flips:
        return None
    shown = flips[0]
    if draft.caller is not None:
        through = _through_caller(draft, draw, flips, direct, right, wrong)
        if not through:
            return None
        shown = through[0]
        flips += through
    holds = [case for case in direct if not case.flips][:_MAX_HOLDS]
    for other in draft.others:
        tried = [other.arguments(draw) for _ in range(2)]
        holds += [case for case in _run(other.name, tried, right, wrong) if not case.flips]
    return Cases(shown=shown, tested=(*flips, *holds)) if holds else None


def _run(
    name: str,
    arguments: Iterable[Arguments],
    right: Mapping[str, Any],
    wrong: Mapping[str, Any],
) -> list[Case]:
    """One case for each different call on which the right code does not raise."""
    cases: dict[str, Case] = {}
    for given in arguments:
        key = repr(given)
        if key in cases:
            continue
        expected = observe(right[name], given)
        if expected.error is None:
            actual = observe(wrong[name], given)
            cases[key] = Case(name=name, arguments=given, expected=expected, actual=actual)
    return list(cases.values())


def _through_caller(
    draft: Draft,
    draw: Draw,
    flips: list[Case],
    direct: list[Case],
    right: Mapping[str, Any],
    wrong: Mapping[str, Any],
) -> list[Case]:
    """Calls of the caller that flip because one of the calls they make does."""
    caller = draft.caller
    if caller is None:
        return []
    arguments = []
    for flip in flips:
        others = draw.sample(direct, _NUM_CALLS_OF_CALLER - 1)
        calls = [flip.arguments, *(case.arguments for case in others)]
        arguments.append(caller.family.wrap(draw, calls))
    return [case for case in _run(caller.name, arguments, right, wrong) if case.flips]
