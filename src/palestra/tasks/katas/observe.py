"""Runs drawn functions and records what they really do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from palestra.tasks.katas.family import Arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one call did: what it returned or raised, and its arguments afterwards."""

    value: Any
    error: str | None
    arguments: Arguments

    def agrees(self, other: Observation) -> bool:
        """Whether a test that wants one accepts the other."""
        return (
            self.error == other.error
            and self.value == other.value
            and self.arguments == other.arguments
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call: what the right code does and what the buggy code does."""

    name: str
    arguments: Arguments
    expected: Observation
    actual: Observation

    @property
    def flips(self) -> bool:
        """Whether a test of this call fails on the buggy code."""
        return not self.expected.agrees(self.actual)

    @property
    def call(self) -> str:
        """The call as one writes it."""
        return f"{self.name}({', '.join(map(repr, self.arguments))})"


def define(*sources: str) -> dict[str, Any]:
    """Run definitions, one after the other, in one fresh namespace."""
    namespace: dict[str, Any] = {}
    for source in sources:
        exec(source, namespace)
    return namespace


def observe(function: Callable[..., Any], arguments: Arguments) -> Observation:
    """Call ``function`` on a copy of ``arguments``."""
    given = copy.deepcopy(arguments)
    try:
        value, error = function(*given), None
    except Exception as raised:
        # The type alone: messages differ between versions of Python.
        value, error = None, type(raised).__name__
    return Observation(value=value, error=error, arguments=given)
