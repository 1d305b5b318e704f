"""Files of one JSON object per line, compressed with zstandard, that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import zstandard

from palestra.errors import HostError

SUFFIX = ".jsonl.zst"


def write_json_lines(target: Path, lines: Iterable[Mapping[str, Any]], *, doing: str) -> Path:
    """Write a file and its folder, replacing nothing until all of it is on the disk.

    Args:
        target: the file.
        lines: its objects; they may be made as they are written.
        doing: what an error says could not be done.

    Raises:
        HostError: the disk is full, there is no permission, or the like.
    """
    temporary = target.with_suffix(".tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            with zstandard.ZstdCompressor().stream_writer(file, closefd=False) as stream:
                for line in lines:
                    stream.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise HostError.from_os(error, doing=doing) from error
    return target


def read_json_lines(path: Path, *, doing: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file.

    Args:
        path: of the file.
        doing: what an error says could not be done.

    Raises:
        HostError: there is no such file, or it is not one of these.
    """
    try:
        with (
            path.open("rb") as file,
            zstandard.ZstdDecompressor().stream_reader(file) as stream,
        ):
            data = stream.read()
    except OSError as error:
        raise HostError.from_os(error, doing=doing) from error
    except zstandard.ZstdError as error:
        raise HostError(f"{doing} ({path}): {error}") from error
    for line in data.splitlines():
        yield orjson.loads(line)


def discard(path: Path) -> Path:
    """Rename a file to the first free ``*.N.discarded`` beside it, and say which."""
    number = 1 + sum(1 for _ in path.parent.glob(f"{path.name}.*.discarded"))
    return path.rename(path.with_name(f"{path.name}.{number}.discarded"))
