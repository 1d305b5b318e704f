"""Which files a unified diff touches, read from its headers alone, and whether it can be one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_HEADER = re.compile(r"diff --git a/(.*) b/(.*)")
_QUOTED_HEADER = re.compile(r'diff --git ("a/(?:[^"\\]|\\.)*"|a/.*) ("b/(?:[^"\\]|\\.)*"|b/.*)')
_HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_ESCAPE = re.compile(r"\\([0-7]{1,3}|.)")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}

# A path that git writes in quotes, or one that is no plain file of a repository.
_UNFIT_PATH = re.compile(r'[\x00-\x1f\x7f"\\]|(?:^|/)(?:\.\.?|\.git|)(?:/|$)', re.IGNORECASE)
_UNFIT_HEADER = re.compile(
    r"GIT binary patch|Binary files |rename |copy |similarity index "
    r"|(?:new file|deleted file|old|new) mode (?!100644$|100755$)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchedFile:
    """One file of a diff; ``before`` is ``None`` for a new file, ``after`` for a deleted one."""

    before: str | None
    after: str | None


def patched_files(patch: str) -> tuple[PatchedFile, ...]:
    """The files of a ``git diff``, in its order."""
    return tuple(_read(block) for block in _header_blocks(patch))


def flaw(patch: str) -> str | None:
    """What makes ``patch`` one that can be applied nowhere, if anything does.

    An empty patch is none. Whether it applies where it shall is another question.
    """
    if not patch.strip():
        return None
    remaining = [0, 0]  # lines of the old and the new file that the hunk still owes
    num_files = 0
    for number, line in enumerate(patch.removesuffix("\n").split("\n"), start=1):
        if any(remaining):
            if line[:1] not in ("", " ", "+", "-", "\\"):
                return f"ends a hunk too early at its line {number}"
            remaining[0] -= line[:1] in ("", " ", "-")
            remaining[1] -= line[:1] in ("", " ", "+")
            if min(remaining) < 0:
                return f"has more lines than its hunk says at its line {number}"
        elif hunk := _HUNK.match(line):
            if not num_files:
                return f"has a hunk of no file at its line {number}"
            remaining = [int(count or 1) for count in hunk.groups()]
        elif line.startswith("@@ "):
            return f"has a hunk that cannot be read at its line {number}"
        else:
            num_files += line.startswith(("diff --git ", "+++ "))
    if any(remaining):
        return "ends in the middle of a hunk"
    return None if num_files else "is no unified diff: it names no file"


def flaw_of_setup(patch: str) -> str | None:
    """What keeps ``patch`` from being a setup patch, if anything does.

    One is a git diff that changes plain text files inside of the repository and renames none.
    """
    try:
        if b"\0" in patch.encode():
            return "is not plain text"
    except UnicodeEncodeError:
        return "is not plain text"
    if (wrong := flaw(patch)) is not None:
        return wrong
    blocks = list(_header_blocks(patch))
    if not blocks:
        return "is no git diff: no line of it begins with 'diff --git '"
    for block in blocks:
        unfit = next((line for line in block if _UNFIT_HEADER.match(line)), None)
        if unfit is not None:
            return f"may change plain text files only, and says {unfit!r}"
        file = _read(block)
        path = file.after if file.before is None else file.before
        if path is None or file.after not in (None, path):
            return f"cannot be read at {block[0]!r}"
        if not is_plain_path(path):
            return f"changes {path!r}, which is no plain path inside of the repository"
    return None


def is_plain_path(path: str) -> bool:
    """Whether ``path`` names a file inside of a repository in plain characters."""
    return not _UNFIT_PATH.search(path)


def unquote(name: str) -> str:
    r"""A name as git means it: in quotes, it escapes bytes (``"caf\303\251"``)."""
    if not (len(name) > 1 and name[0] == name[-1] == '"'):
        return name
    octets = bytearray()
    position = 1
    for escape in _ESCAPE.finditer(name, 1, len(name) - 1):
        octets += name[position : escape.start()].encode()
        code = escape[1]
        octets += (
            bytes([int(code, 8) & 0xFF]) if code.isdigit() else _ESCAPED.get(code, code).encode()
        )
        position = escape.end()
    octets += name[position:-1].encode()
    return octets.decode(errors="surrogateescape")


def _header_blocks(patch: str) -> Iterator[list[str]]:
    block: list[str] = []
    in_header = False
    # At line feeds alone: what else ends a line for Python may stand inside one.
    for raw in patch.split("\n"):
        line = raw.removesuffix("\r")
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
    header = _QUOTED_HEADER.fullmatch(block[0]) if '"' in block[0] else _HEADER.fullmatch(block[0])
    before, after = (unquote(header[1]), unquote(header[2])) if header else ("", "")
    if header and '"' in block[0]:
        before, after = before.removeprefix("a/"), after.removeprefix("b/")
    new = any(line.startswith("new file mode") or line == "--- /dev/null" for line in block)
    deleted = any(line.startswith("deleted file mode") or line == "+++ /dev/null" for line in block)
    return PatchedFile(before=None if new else before, after=None if deleted else after)
