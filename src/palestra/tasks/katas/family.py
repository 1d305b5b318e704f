"""What can be drawn: families of functions, their bugs, and functions drawn from them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from string import Template
from typing import Any

from palestra.tasks.katas.draw import Draw

DOC_WIDTH = 88

Arguments = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug:
    """One way in which a family's source goes wrong: ``right`` becomes ``wrong``.

    ``right`` occurs exactly once in the source. Tier 1 is plain to see, tier 2
    takes a careful reading; tier 4 needs a fix of lines, not of a token.
    """

    kind: str
    right: str
    wrong: str
    tier: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A function to be drawn: its source with ``$slots`` and the words that fill them.

    ``$f`` is the function's name, drawn from ``names``; ``slots`` give words for
    the other identifiers and ``constants`` ranges for whole numbers. ``doc`` says
    exactly what is meant; ``inputs`` draws arguments, also those at the corners.
    """

    name: str
    names: str
    doc: str
    source: str
    slots: Mapping[str, str]
    bugs: tuple[Bug, ...]
    inputs: Callable[[Draw, Mapping[str, int]], Arguments]
    constants: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def draw(self, draw: Draw, *, taken: Sequence[str] = ()) -> Function | None:
        """A function of this family, or ``None`` when every name of it is taken."""
        free = [name for name in self.names.split() if name not in taken]
        if not free:
            return None
        words: dict[str, str] = {"f": draw.pick(free)}
        for slot, choices in self.slots.items():
            unused = [word for word in choices.split() if word not in words.values()]
            words[slot] = draw.pick(unused)
        numbers = {name: draw.number(low, high) for name, (low, high) in self.constants.items()}
        return Function(
            family=self,
            name=words["f"],
            words=words | {name: str(number) for name, number in numbers.items()},
            numbers=numbers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function drawn from a family: identifiers and constants are settled."""

    family: Family
    name: str
    words: Mapping[str, str]
    numbers: Mapping[str, int]

    @property
    def doc(self) -> str:
        """What is meant, in words."""
        return Template(self.family.doc).substitute(self.words)

    @property
    def signature(self) -> str:
        """``name(parameters)``."""
        return self.source().split("\n", 1)[0].removeprefix("def ").rstrip(":")

    def source(self, bug: Bug | None = None) -> str:
        """The source with its docstring, right or with ``bug`` in it."""
        template = self.family.source.lstrip("\n")
        if bug is not None:
            if template.count(bug.right) != 1:
                raise ValueError(f"{self.family.name}: {bug.right!r} does not occur exactly once")
            template = template.replace(bug.right, bug.wrong)
        head, body = Template(template).substitute(self.words).rstrip("\n").split("\n", 1)
        return f"{head}\n{_docstring(self.doc)}\n{body}\n"

    def arguments(self, draw: Draw) -> Arguments:
        """Arguments for one call."""
        return self.family.inputs(draw, self.numbers)


def _docstring(doc: str) -> str:
    lines = textwrap.wrap(doc, DOC_WIDTH)
    if len(lines) == 1:
        return f'    """{lines[0]}"""'
    return "\n".join(['    """' + lines[0], *(f"    {line}" for line in lines[1:]), '    """'])
