"""Turns of sessions that nobody asks just now, on the disk instead of in memory.

A folder of its own for each process, held by a lock: whoever comes next in the
same place removes the folders of processes that are gone. The ledger lives as
long as its process, so what a killed one left is of no use to anybody.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from array import array
from contextlib import suppress
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from palestra.errors import GatewayError, HostError
from palestra.policy.gateway.packed import PackedTurn, PackedTurns

_LOCK = "lock"
_PREFIX = "ledger-"
_DIGEST_BYTES = 16


class SpillFolder:
    """Keeps packed turns in files; a context manager that removes them all.

    Writing and reading block for a millisecond per MiB or so, which is what a
    session of 100,000 ids takes.

    Args:
        parent: where the folder is made.

    Raises:
        HostError: it cannot be made there.
    """

    def __init__(self, parent: Path) -> None:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(parent)
            self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            self._lock = os.open(self.folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise HostError.from_os(error, doing="cannot keep the ledger's files") from error

    def __enter__(self) -> SpillFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            os.close(self._lock)

    def write(self, session_id: str, turns: PackedTurns) -> None:
        """Put the turns of a session into its file, whole or not at all.

        Raises:
            OSError: there is no room, or no permission.
        """
        head = orjson.dumps([asdict(turn) for turn in turns.packed])
        lengths = orjson.dumps([len(head), len(turns.ids), len(turns.logprobs)])
        body = b"\n".join((lengths, head)) + turns.ids.tobytes() + turns.logprobs.tobytes()
        path = self._path(session_id)
        unfinished = path.with_suffix(".unfinished")
        try:
            unfinished.write_bytes(blake2b(body, digest_size=_DIGEST_BYTES).digest() + body)
            unfinished.replace(path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise

    def read(self, session_id: str) -> PackedTurns:
        """The turns of a session, whose file stays.

        Raises:
            GatewayError: the file is gone or damaged.
        """
        try:
            content = self._path(session_id).read_bytes()
        except OSError as error:
            raise GatewayError(
                f"the turns of session {session_id} cannot be read: {error}"
            ) from error
        digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if blake2b(body, digest_size=_DIGEST_BYTES).digest() != digest:
            raise GatewayError(f"the file with the turns of session {session_id} is damaged")
        lengths, rest = body.split(b"\n", 1)
        num_head, num_ids, _ = orjson.loads(lengths)
        ids: array[int] = array("i")
        logprobs: array[float] = array("d")
        ids_end = num_head + num_ids * ids.itemsize
        ids.frombytes(rest[num_head:ids_end])
        logprobs.frombytes(rest[ids_end:])
        return PackedTurns([_turn(wire) for wire in orjson.loads(rest[:num_head])], ids, logprobs)

    def remove(self, session_id: str) -> None:
        """Remove the file of a session, if there is one."""
        with suppress(OSError):
            self._path(session_id).unlink(missing_ok=True)

    def _path(self, session_id: str) -> Path:
        return self.folder / f"{session_id}.turns"


def _turn(wire: dict[str, Any]) -> PackedTurn:
    segments = tuple((num_ids, version) for num_ids, version in wire.pop("segments"))
    distortions = tuple(wire.pop("distortions"))
    return PackedTurn(**wire, segments=segments, distortions=distortions)


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            lock = os.open(folder / _LOCK, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
