"""Where tasks come from: files, a folder of them, the model hub, or the generator of katas."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from palestra.errors import HostError, MissingExtra, TaskError
from palestra.records import Task
from palestra.tasks.hub import hub_rows
from palestra.tasks.katas.generate import generate_rows
from palestra.tasks.katas.spec import PREFIX, KataSpec
from palestra.tasks.miles import from_prompt_data
from palestra.tasks.rows import task_from_row

PARQUET_BATCH_ROWS = 64
_KINDS = (
    "a .jsonl, .jsonl.gz or .parquet file, a folder of them, a hub name such as SWE-Gym/SWE-Gym, "
    "or katas:SPLIT?seed=0&n=100&level=1"
)
_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
_SPLITS = ("train", "test", "validation", "dev")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceItem:
    """One entry of a source and where it lies; still text when it comes from JSONL."""

    where: str
    payload: bytes | dict[str, Any]

    def row(self) -> dict[str, Any]:
        """The row, out of its prompt-data wrapping.

        Raises:
            TaskError: it is not a JSON object.
        """
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
        """The row as a task.

        Raises:
            TaskError: it cannot be used; says where it lies, its id and why.
        """
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
    return (item.row() for item in itertools.islice(iter_items(spec), limit))


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
    why = ""  # of the first row that was skipped
    for item in iter_items(spec):
        if limit is not None and len(tasks) >= limit:
            break
        try:
            task = item.task()
            if task.instance_id in tasks:
                raise TaskError(f"{item.where}: {task.instance_id} occurs twice")
        except TaskError as error:
            if on_bad_row == "raise":
                raise
            why = why or f": {error}"
            if report is not None:
                report(f"skipped: {error}")
            continue
        tasks[task.instance_id] = task
    if not tasks and limit != 0:
        raise TaskError(f"{spec} holds no task that can be used{why}")
    return list(tasks.values())


def iter_items(spec: str, *, split: str | None = None) -> Iterator[SourceItem]:
    """The entries of a source, one at a time, not looked into yet.

    Args:
        spec: as for :func:`load_tasks`, or a name on the model hub.
        split: of a name on the hub, and of a folder whose files are named for splits;
            ``train`` if not given.

    Raises:
        TaskError: there is no such source, or a file of it is broken.
        HostError: a file cannot be read, or the hub does not answer.
        MissingExtra: a library that is needed for it is not installed.
    """
    if spec.startswith(PREFIX):
        katas = KataSpec.parse(spec)
        return (SourceItem(where=katas.name, payload=row) for row in generate_rows(katas))
    path = Path(spec).expanduser()
    if path.name.endswith(_SUFFIXES):
        return _from_file(path)
    if path.is_dir():
        files = _files_of(path, split or "train")
        return itertools.chain.from_iterable(map(_from_file, files))
    if _HUB_NAME.fullmatch(spec):
        return (SourceItem(**entry) for entry in hub_rows(spec, split=split or "train"))
    raise TaskError(f"unknown task source {spec!r}", hint=f"give {_KINDS}")


def _files_of(folder: Path, split: str) -> list[Path]:
    """The task files below a folder, in order; those of one split, where they are named so."""
    files = sorted(p for p in folder.rglob("*") if p.name.endswith(_SUFFIXES) and p.is_file())
    if not files:
        raise TaskError(f"there is no task file in {folder}", hint=f"give {_KINDS}")
    named = {file: next(filter(file.name.startswith, _SPLITS), None) for file in files}
    if not any(named.values()):
        return files
    chosen = [file for file, name in named.items() if file.name.startswith(split)]
    if not chosen:
        there = ", ".join(sorted({name for name in named.values() if name}))
        raise TaskError(f"{folder} has no files of the split {split!r}", hint=f"it has {there}")
    return chosen


def _from_file(path: Path) -> Iterator[SourceItem]:
    return _from_parquet(path) if path.suffix == ".parquet" else _from_jsonl(path)


def _from_jsonl(path: Path) -> Iterator[SourceItem]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in zip(itertools.count(1), file, strict=False):
                if line.strip():
                    yield SourceItem(where=f"{path}:{number}", payload=line)
    except FileNotFoundError:
        raise _no_file(path) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise TaskError(f"{path} is not a whole gzip file: {error}") from None
    except OSError as error:
        raise HostError.from_os(error, doing=f"cannot read {path}") from error


def _from_parquet(path: Path) -> Iterator[SourceItem]:
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
                    yield SourceItem(where=f"{path}: row {number}", payload=row)
    except FileNotFoundError:
        raise _no_file(path) from None
    except ArrowException as error:
        line = str(error).splitlines()[0]
        raise TaskError(f"{path} is not a parquet file that can be read: {line}") from None
    except OSError as error:
        raise HostError.from_os(error, doing=f"cannot read {path}") from error


def _no_file(path: Path) -> TaskError:
    return TaskError(f"there is no task file {path}", hint=f"give {_KINDS}")
