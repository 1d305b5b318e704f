"""Miles prompt data: one JSON object a line, ``{"prompt": …, "metadata": {the row}}``."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import date, datetime
from pathlib import Path
from typing import IO, Any

from palestra.errors import HostError, TaskError


def to_prompt_data(
    row: Mapping[str, Any], *, subset: str | None = None, split: str | None = None
) -> dict[str, Any]:
    """Wrap a row; its fields are copied as they stand.

    Args:
        row: a task row with a ``problem_statement``.
        subset: takes the place of the row's; ``None``: ``gym`` where the row names none.
        split: the same, with ``train``.

    Raises:
        TaskError: the row has no problem statement.
    """
    statement = row.get("problem_statement")
    if not isinstance(statement, str):
        raise TaskError(f"{_name(row)}: field problem_statement is missing or not a string")
    metadata = dict(row)
    metadata["subset"] = subset or row.get("subset") or "gym"
    metadata["split"] = split or row.get("split") or "train"
    return {"prompt": statement, "metadata": metadata}


def from_prompt_data(line: Mapping[str, Any]) -> dict[str, Any]:
    """The row inside a line of prompt data; a plain row is returned as it is."""
    metadata = line.get("metadata")
    if "prompt" not in line or not isinstance(metadata, Mapping):
        return dict(line)
    row = dict(metadata)
    if "problem_statement" not in row and isinstance(line["prompt"], str):
        row["problem_statement"] = line["prompt"]
    return row


def write_prompt_data(
    path: Path,
    rows: Iterable[Mapping[str, Any]],
    *,
    subset: str | None = None,
    split: str | None = None,
) -> int:
    """Write ``rows`` as prompt data, one at a time, and return how many there were.

    The file appears under its name only when it is whole: a failure half-way
    leaves what was there before.

    Raises:
        HostError: the disk is full, or the folder cannot be written.
        TaskError: a row has no problem statement or holds what JSON cannot.
    """
    with prompt_data_file(path, subset=subset, split=split) as file:
        for row in rows:
            file.write(row)
    return file.count


class PromptDataFile:
    """A file of prompt data that is being written.

    Attributes:
        path: its name when it is whole.
        count: lines so far.
    """

    def __init__(
        self, path: Path, file: IO[bytes], *, subset: str | None, split: str | None
    ) -> None:
        self.path = path
        self.count = 0
        self._file = file
        self._subset = subset
        self._split = split

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row.

        Raises:
            HostError: the disk is full.
            TaskError: the row has no problem statement or holds what JSON cannot.
        """
        line = _dump(to_prompt_data(row, subset=self._subset, split=self._split))
        with _os_errors(self.path):
            self._file.write(line + b"\n")
        self.count += 1


@contextmanager
def prompt_data_file(
    path: Path, *, subset: str | None = None, split: str | None = None
) -> Iterator[PromptDataFile]:
    """A file that takes its name when it is whole; a failure leaves what was there before.

    Raises:
        HostError: the folder cannot be written, or the disk is full.
    """
    with _replacing(path) as file:
        yield PromptDataFile(path, file, subset=subset, split=split)


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file beside ``path`` that takes its name on success."""
    with _os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    file = os.fdopen(descriptor, "wb")
    try:
        yield file
        with _os_errors(path):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
    finally:
        with suppress(OSError):  # closing flushes, which fails again on a full disk
            file.close()
        temporary.unlink(missing_ok=True)


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError.from_os(error, doing=f"cannot write {path}") from error


def _umask() -> int:
    # mkstemp makes private files; /proc tells the mask without changing it for all threads.
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    return 0o022


def _dump(line: Mapping[str, Any]) -> bytes:
    try:
        # json and not orjson: it keeps integers of any size.
        return json.dumps(line, allow_nan=False, default=_jsonable).encode()
    except (TypeError, ValueError) as error:
        raise TaskError(f"{_name(line['metadata'])}: not representable as JSON: {error}") from None


def _jsonable(value: object) -> object:
    if isinstance(value, datetime | date):  # parquet has them where JSON has text
        return value.isoformat()
    raise TypeError(f"a value of type {type(value).__name__}")


def _name(row: Mapping[str, Any]) -> str:
    return str(row.get("instance_id") or "a row without instance_id")
