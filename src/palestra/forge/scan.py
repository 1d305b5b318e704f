"""Whether what an agent can see holds the lines that its patch shall bring back."""

from __future__ import annotations

import base64
import inspect
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from palestra.forge import looking
from palestra.forge.statement import is_telling, package_of

DUPLICATE = "duplicate: "
"""Begins a finding in another file of the project, which users of the project see as well."""


def scan(row: Mapping[str, Any], files: Iterable[tuple[str, bytes]]) -> tuple[str, ...]:
    """Look for the lines that a row's patch adds.

    Short lines do not count, nor do those that also stand elsewhere in the module. Bytecode
    of a changed module, an installed copy of it and an archive named like the library are
    findings whatever they hold.

    Args:
        row: of the task.
        files: path → contents of what the agent can read; a path that is not absolute is in
            the repository. The changed modules must be among them.

    Returns:
        One line each; what stands in another file of the project begins with ``duplicate:``.
    """
    return tuple(looking.look(_sought(row), files))


def scan_command(row: Mapping[str, Any], *, roots: Sequence[str] = ("/",)) -> str:
    """A command that scans the machine that it runs on, and its repository's objects.

    It needs Python 3.8 and prints one JSON object: ``findings`` as `scan` gives them, and
    ``num_files``, how many were looked at.

    Args:
        row: of the task.
        roots: the folders below which it looks.
    """
    sought = json.dumps({**_sought(row), "roots": list(roots)})
    program = f"{inspect.getsource(looking)}\nmain(json.loads({sought!r}))\n"
    packed = base64.b64encode(program.encode()).decode()
    runner = "import base64,sys;exec(compile(base64.b64decode(sys.stdin.read()),'look','exec'))"
    # Through standard input: a command line has a limit.
    return f"python3 -I -c {shlex.quote(runner)} <<'PALESTRA'\n{packed}\nPALESTRA"


def _sought(row: Mapping[str, Any]) -> dict[str, Any]:
    lines: dict[str, list[str]] = {}
    for path, line in _added(row["patch"]):
        lines.setdefault(path, [])
        if is_telling(line) and line.strip() not in lines[path]:
            lines[path].append(line.strip())
    return {
        "workdir": row.get("workdir") or "/testbed",
        "lines": lines,
        "packages": sorted({package_of(path) for path in lines}),
        "statement": row["problem_statement"],
    }


def _added(patch: str) -> Iterator[tuple[str, str]]:
    """The lines that a git diff adds, with the file that each is in."""
    path = ""
    in_hunk = False
    for line in patch.split("\n"):
        if line.startswith("diff --git "):
            in_hunk = False
        elif line.startswith("@@ "):
            in_hunk = True
        elif not in_hunk and line.startswith("+++ "):
            path = line[4:].removeprefix("b/").rstrip("\t")
        elif in_hunk and line.startswith("+"):
            yield path, line[1:]
