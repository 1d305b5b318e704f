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
    row: Mapping[str, Any], *, subset: str = "gym", split: str = "train"
) -> dict[str, Any]:
    """Wrap a row; its fields are copied as they stand.

    Args:
        row: a task row with a ``problem_statement``.
        subset: of the data set, where the row names none.
        split: of the data set, where the row names none.

    Raises:
        TaskError: the row has no problem statement.
    """
    statement = row.get("problem_statement")
    if not isinstance(statement, str):
        raise TaskError(f"{_name(row)}: field problem_statement is missing or not a string")
    metadata = dict(row)
    metadata["subset"] = row.get("subset") or subset
    metadata["split"] = row.get("split") or split
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
    subset: str = "gym",
    split: str = "train",
) -> int:
    """Write ``rows`` as prompt data, one at a time, and return how many there were.

    The file appears under its name only when it is whole: a failure half-way
    leaves what was there before.

    Raises:
        HostError: the disk is full, or the folder cannot be written.
        TaskError: a row has no problem statement or holds what JSON cannot.
    """
    count = 0
    with _replacing(path) as file:
        for row in rows:
            line = _dump(to_prompt_data(row, subset=subset, split=split))
            with _os_errors(path):
                file.write(line + b"\n")
            count += 1
    return count


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
