"""Which files a unified diff touches, read from its headers alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_HEADER = re.compile(r"^diff --git a/(.*) b/(.*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchedFile:
    """One file of a diff; ``before`` is ``None`` for a new file, ``after`` for a deleted one."""

    before: str | None
    after: str | None


def patched_files(patch: str) -> tuple[PatchedFile, ...]:
    """The files of a ``git diff``, in its order."""
    return tuple(_read(block) for block in _header_blocks(patch))


def _header_blocks(patch: str) -> Iterator[list[str]]:
    block: list[str] = []
    in_header = False
    for line in patch.splitlines():
        if line.startswith("diff --git "):
            if block:
                yield block
            block, in_header = [line], True
        elif line.startswith("@@"):
            in_header = False  # lines of a hunk may look like headers
        elif in_header:
            block.append(line)
    if block:
        yield block


def _read(block: list[str]) -> PatchedFile:
    header = _HEADER.match(block[0])
    before, after = (header[1], header[2]) if header else ("", "")
    new = any(line.startswith("new file mode") or line == "--- /dev/null" for line in block)
    deleted = any(line.startswith("deleted file mode") or line == "+++ /dev/null" for line in block)
    return PatchedFile(before=None if new else before, after=None if deleted else after)
