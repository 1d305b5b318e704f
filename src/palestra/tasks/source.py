"""Where tasks come from: a JSONL or parquet file, or the generator of katas."""

from __future__ import annotations

import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from palestra.errors import HostError, MissingExtra, TaskError
from palestra.records import Task
from palestra.tasks.katas.generate import generate_rows
from palestra.tasks.katas.spec import PREFIX, KataSpec
from palestra.tasks.miles import from_prompt_data
from palestra.tasks.rows import task_from_row

PARQUET_BATCH_ROWS = 64
_KINDS = "a .jsonl, .jsonl.gz or .parquet file, or katas:SPLIT?seed=0&n=100&level=1"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    """One entry of a source and where it lies; still text when it comes from JSONL."""

    where: str
    payload: bytes | dict[str, Any]

    def row(self) -> dict[str, Any]:
        if isinstance(self.payload, dict):
            return from_prompt_data(self.payload)
        try:
            value = json.loads(self.payload)
        except ValueError as error:
            raise TaskError(f"{self.where}: not JSON: {error}") from None
        if not isinstance(value, dict):
            raise TaskError(f"{self.where}: a {type(value).__name__}, not an object")
        return from_prompt_data(value)

    def task(self) -> Task:
        try:
            return task_from_row(self.row())
        except TaskError as error:
            if error.message.startswith(self.where):
                raise
            raise TaskError(f"{self.where}: {error.message}", hint=error.hint) from None


def iter_rows(spec: str, *, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a source, one at a time, out of their prompt-data wrapping.

    Args:
        spec: a path ending in .jsonl, .jsonl.gz or .parquet, or
            ``katas:SPLIT?seed=0&n=2000&level=1`` (or ``levels=0-3``).
        limit: most rows to yield.

    Raises:
        TaskError: there is no such source, or a line is not a JSON object.
        HostError: the file cannot be read.
        MissingExtra: a parquet file without pyarrow.
    """
    return (item.row() for item in itertools.islice(_items(spec), limit))


def load_tasks(
    spec: str,
    *,
    limit: int | None = None,
    on_bad_row: Literal["raise", "skip"] = "raise",
    report: Callable[[str], None] | None = None,
) -> list[Task]:
    """Read the tasks of a source.

    Args:
        spec: as for :func:`iter_rows`.
        limit: most tasks to read.
        on_bad_row: whether a row that cannot be used ends the reading.
        report: is told of each skipped row, in one line.

    Raises:
        TaskError: there is no such source, a row is broken, two tasks share an id
            or nothing is left.
        HostError: the file cannot be read.
        MissingExtra: a parquet file without pyarrow.
    """
    tasks: dict[str, Task] = {}
    for item in _items(spec):
        if limit is not None and len(tasks) >= limit:
            break
        try:
            task = item.task()
            if task.instance_id in tasks:
                raise TaskError(f"{item.where}: {task.instance_id} occurs twice")
        except TaskError as error:
            if on_bad_row == "raise":
                raise
            if report is not None:
                report(f"skipped: {error}")
            continue
        tasks[task.instance_id] = task
    if not tasks and limit != 0:
        raise TaskError(f"{spec} holds no task that can be used")
    return list(tasks.values())


def _items(spec: str) -> Iterator[_Item]:
    if spec.startswith(PREFIX):
        katas = KataSpec.parse(spec)
        return (_Item(where=katas.name, payload=row) for row in generate_rows(katas))
    path = Path(spec).expanduser()
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return _from_jsonl(path)
    if path.suffix == ".parquet":
        return _from_parquet(path)
    raise TaskError(f"unknown task source {spec!r}", hint=f"give {_KINDS}")


def _from_jsonl(path: Path) -> Iterator[_Item]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in zip(itertools.count(1), file, strict=False):
                if line.strip():
                    yield _Item(where=f"{path}:{number}", payload=line)
    except FileNotFoundError:
        raise _no_file(path) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise TaskError(f"{path} is not a whole gzip file: {error}") from None
    except OSError as error:
        raise HostError.from_os(error, doing=f"cannot read {path}") from error


def _from_parquet(path: Path) -> Iterator[_Item]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise MissingExtra.named(
            "parquet", needed_for=f"reading {path}", module="pyarrow"
        ) from None
    try:
        with ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield _Item(where=f"{path}: row {number}", payload=row)
    except FileNotFoundError:
        raise _no_file(path) from None
    except ArrowException as error:
        line = str(error).splitlines()[0]
        raise TaskError(f"{path} is not a parquet file that can be read: {line}") from None
    except OSError as error:
        raise HostError.from_os(error, doing=f"cannot read {path}") from error


def _no_file(path: Path) -> TaskError:
    return TaskError(f"there is no task file {path}", hint=f"give {_KINDS}")
