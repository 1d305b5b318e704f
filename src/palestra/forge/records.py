"""What the forge's parts hand to one another.

Project → Stable → Candidate → Forged → a row. A project is made once; everything after it
is a run of its tests in a sandbox.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from palestra.forge.mutants import Mutant


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A tested project and the image that its tests run in.

    Attributes:
        name: as package indexes normalise it (``more-itertools``).
        version: of the release, or the short commit id of a git repository.
        licence: as the project says of itself; ``None`` where it says nothing.
        origin: where it came from, with a digest of what came: ``pypi:NAME==VERSION
            sha256:…`` or ``git:NAME@COMMIT``.
        image: name of its image in the store; the repository lies in ``/testbed``.
        checkout: folder on this machine with the repository as the image has it, one commit.
        commit: id of that commit.
        sources: the modules that bugs are seeded into, relative to the checkout.
        tests: what pytest is given, files relative to the checkout.
        python: version of the image's Python, ``3.11``.
        requirements: what is installed beside the project, ``name==version``.
    """

    name: str
    version: str
    licence: str | None
    origin: str
    image: str
    checkout: Path
    commit: str
    sources: tuple[str, ...]
    tests: tuple[str, ...]
    python: str
    requirements: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One line of a traceback.

    Attributes:
        path: relative to the repository, or as it stands where it is outside of it.
        line: counted from 1.
        function: as the traceback names it; ``None`` where it does not.
    """

    path: str
    line: int
    function: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How one test failed, as its report says.

    Attributes:
        test: its id, ``tests/test_a.py::test_b[c]``.
        error: type of the exception, ``AssertionError``.
        message: what the exception said, several lines perhaps; pytest's explanation included.
        frames: of the traceback, the outermost first.
    """

    test: str
    error: str
    message: str
    frames: tuple[Frame, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difficulty:
    """What makes a task hard, as far as that can be measured before anybody tried it.

    Attributes:
        num_sites: places that must be changed.
        num_files: files that must be changed.
        lines_to_read: of the functions with a bug and those on the way to them.
        trace_distance: calls between the innermost frame that a failure shows and the bug's
            function; 0: the traceback ends there; ``None``: it never shows the bug's file.
        num_failing: tests that must be made to pass.
        level: 1 (easy) to 5, from the others.
    """

    num_sites: int
    num_files: int
    lines_to_read: int
    trace_distance: int | None
    num_failing: int
    level: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Bugs in one or more modules of a project, and what its tests said of them.

    Attributes:
        mutants: by path of the module.
        failing: stable tests that fail now.
        holding: stable tests that still pass.
        failures: how some of the failing ones failed.
    """

    mutants: Mapping[str, Mutant]
    failing: tuple[str, ...]
    holding: tuple[str, ...]
    failures: tuple[Failure, ...]
