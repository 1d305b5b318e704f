"""What became of every bug that was tried, on the disk, so that a killed forge goes on.

One file for each project, one line for each bug. A line that a crash cut short is passed over,
and its bug is tried again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from palestra.errors import HostError


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What became of a draft: a row and its certificate, or a reason why not.

    Attributes:
        key: of the draft.
        reason: why it is no task; ``None`` where it is one.
        row: of the task.
        certificate: of the task, as a JSON object.
        failing: the stable tests that it makes fail.
    """

    key: str
    reason: str | None = None
    row: Mapping[str, Any] | None = None
    certificate: Mapping[str, Any] | None = None
    failing: tuple[str, ...] = ()


class Journal:
    """The tried bugs of one project under one set of conditions.

    Args:
        folder: of all journals.
        conditions: everything that decides what becomes of a bug; others have another file.
    """

    def __init__(self, folder: Path, name: str, conditions: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(orjson.dumps(conditions, option=orjson.OPT_SORT_KEYS))
        self._path = folder / f"{name}-{digest.hexdigest()[:12]}.jsonl"
        self._known = {tried.key: tried for tried in self._read()}

    def find(self, key: str) -> Tried | None:
        """What became of the bug of that key, if it was tried."""
        return self._known.get(key)

    def note(self, tried: Tried) -> None:
        """Write down what became of a bug.

        Raises:
            HostError: the file cannot be written.
        """
        self._known[tried.key] = tried
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                # A torn line before this one gets an end of its own.
                file.write(b"\n" + orjson.dumps(asdict(tried)) + b"\n")
        except OSError as error:
            raise HostError.from_os(error, doing="cannot write the forge's journal") from error

    def _read(self) -> list[Tried]:
        try:
            lines = self._path.read_bytes().splitlines() if self._path.exists() else []
        except OSError as error:
            raise HostError.from_os(error, doing="cannot read the forge's journal") from error
        found = []
        for line in filter(None, lines):
            try:
                fields = orjson.loads(line)
                found.append(Tried(**{**fields, "failing": tuple(fields["failing"])}))
            except (orjson.JSONDecodeError, TypeError, KeyError):
                continue
        return found
