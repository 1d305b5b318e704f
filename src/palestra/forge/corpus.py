"""Many projects: who they are, how many tasks each gives, which are held out; pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

from palestra.errors import HostError, TaskError

LIST_SUFFIX = ".txt"
CORPUS = "corpus"
"""The name of the list that comes along."""


def projects_of(names: Sequence[str]) -> tuple[str, ...]:
    """The projects that ``names`` stand for, each once, in their order.

    A name is a project, a ``.txt`` file with one on each line (``#`` begins a comment), or
    ``corpus`` for the list that comes along.

    Raises:
        HostError: a list cannot be read.
        TaskError: there is no project.
    """
    found: dict[str, None] = {}
    for name in names:
        if name == CORPUS:
            found.update(dict.fromkeys(_lines(_corpus())))
        elif name.endswith(LIST_SUFFIX):
            found.update(dict.fromkeys(_lines(_read(Path(name)))))
        else:
            found[name] = None
    if not found:
        raise TaskError("no project is named", hint="palestra forge corpus takes the list of ours")
    return tuple(found)


def quota(wanted: int, made: int, projects_left: int) -> int:
    """How many tasks the next project is asked for: an even share of what is missing."""
    return -(-max(0, wanted - made) // projects_left)


def held_out(names: Iterable[str], *, share: float, seed: str) -> frozenset[str]:
    """The projects whose tasks are not trained on: at least one where any shall be.

    Args:
        names: of the projects.
        share: of the projects, from 0 to below 1.
        seed: draws them.
    """

    def drawn(name: str) -> bytes:
        return hashlib.sha256(f"{seed} {name}".encode()).digest()

    ordered = sorted(set(names), key=drawn)
    number = round(share * len(ordered))
    if share > 0 and len(ordered) > 1:
        number = max(1, number)
    return frozenset(ordered[:number])


def _lines(text: str) -> list[str]:
    stripped = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in stripped if line]


def _corpus() -> str:
    return (resources.files("palestra.recipes") / "forge-corpus.txt").read_text(encoding="utf-8")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise HostError.from_os(error, doing=f"cannot read {path}") from error
