"""Candidate patches: what they may touch, and how they are applied.

A patch is untrusted input. What names a place outside the repository, or git's
own files, is refused before anything runs.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from palestra.records import Task
from palestra.tasks.patches import patched_files

APPLY_FAILED_MARKER = ">>>>> Patch Apply Failed"
APPLY_FAILED_EXIT_CODE = 97

# Files that an editable installation reads from the tree as they are.
_READ_IN_PLACE = (".py", ".pyi", ".md", ".rst", ".txt")
_HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_NAMING = re.compile(r"(?:---|\+\+\+|rename from|rename to|copy from|copy to) (.*)")
_GIT_HEADER = re.compile(r"diff --git (.*)")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|\S+')
_ESCAPE = re.compile(r"\\([0-7]{1,3}|.)")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


def is_empty(patch: str) -> bool:
    """Whether ``patch`` changes nothing."""
    return not patch.strip()


def refusal(patch: str) -> str | None:
    """Why ``patch`` must not be applied, or ``None`` when it may be."""
    for path in touched_paths(patch):
        parts = path.split("/")
        if path.startswith("/") or ".." in parts:
            return f"the patch names a path outside the repository: {path!r}"
        if any(part.lower() == ".git" for part in parts):
            return f"the patch names one of git's own files: {path!r}"
        if "\0" in path:
            return f"the patch names an impossible path: {path!r}"
    return None


def touches_build(patch: str) -> bool:
    """Whether ``patch`` may change what installing the repository does.

    Plain modules and prose do not: the editable installation of the image reads
    them in place.
    """
    paths = touched_paths(patch)
    return any(p.endswith("setup.py") or not p.endswith(_READ_IN_PLACE) for p in paths)


def touched_paths(patch: str) -> tuple[str, ...]:
    """Every path that the headers of ``patch`` name, without ``a/`` and ``b/``, each once."""
    return tuple(dict.fromkeys(_header_paths(patch)))


def split_files(patch: str) -> tuple[str, ...]:
    """Cut a diff where each file begins; joined, the parts are the patch again.

    What stands before the first header of a file belongs to the first part.
    """
    parts: list[list[str]] = [[]]
    has_names = False  # whether the current part has come to its +++
    for line, is_header in _lines(patch):
        if is_header and (_GIT_HEADER.match(line) or (has_names and line.startswith("--- "))):
            if any(parts[-1]):
                parts.append([])
            has_names = False
        has_names = has_names or (is_header and line.startswith("+++ "))
        parts[-1].append(line)
    return (*("\n".join([*part, ""]) for part in parts[:-1]), "\n".join(parts[-1]))


def headers(patch: str) -> Iterator[str]:
    """The lines of ``patch`` that are not inside a hunk."""
    return (line for line, is_header in _lines(patch) if is_header)


def _lines(patch: str) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it stands outside the hunks, where headers are."""
    removed = added = 0  # lines that the current hunk still holds
    for line in patch.split("\n"):
        inside = removed > 0 or added > 0  # where anything may look like a header
        if inside:
            removed -= line[:1] in ("-", " ", "")
            added -= line[:1] in ("+", " ", "")
        elif hunk := _HUNK.match(line):
            removed, added = int(hunk[1] or 1), int(hunk[2] or 1)
        yield line, not inside


def _header_paths(patch: str) -> Iterator[str]:
    for line in headers(patch):
        if git := _GIT_HEADER.match(line):
            yield from (_strip(name) for name in _both(git[1].rstrip("\r")))
        elif named := _NAMING.match(line):
            name = _unquote(named[1].split("\t")[0].rstrip("\r"))
            if name != "/dev/null":
                yield name if line.startswith(("rename", "copy")) else _strip(name)


def _both(names: str) -> list[str]:
    """The two names of a ``diff --git`` line.

    They differ in a rename only, which names them again below; where blanks make
    the line ambiguous, pieces of names come out, which is harmless.
    """
    half = len(names) // 2
    if names[half : half + 1] == " " and _strip(names[:half]) == _strip(names[half + 1 :]):
        return [_unquote(names[:half])]
    return [_unquote(name) for name in _WORD.findall(names)]


def _strip(name: str) -> str:
    """Drop the first part, as ``-p1`` does; an absolute name keeps its slash."""
    if name.startswith("/"):
        return name
    return name.partition("/")[2] or name


def _unquote(name: str) -> str:
    if not (len(name) > 1 and name[0] == name[-1] == '"'):
        return name
    octets = bytearray()
    position = 1
    for escape in _ESCAPE.finditer(name, 1, len(name) - 1):
        octets += name[position : escape.start()].encode()
        code = escape[1]
        if code.isdigit():
            octets.append(int(code, 8) & 0xFF)
        else:
            octets += _ESCAPED.get(code, code).encode()
        position = escape.end()
    octets += name[position:-1].encode()
    return octets.decode(errors="replace")


def encode(patch: str) -> bytes:
    """The bytes of ``patch`` as git wants them: the last line ends in a newline."""
    data = patch.encode(errors="surrogateescape")
    return data if data.endswith(b"\n") else data + b"\n"


def is_plain_text(patch: str) -> bool:
    """Whether ``patch`` can stand in a command as it is: UTF-8 without NULs."""
    return "\0" not in patch and not _SURROGATE.search(patch)


def write_command(patch: str, patch_file: str) -> str:
    """Bash that writes a patch of plain text to ``patch_file``, without another process.

    If it cannot be written the shell ends, so that nobody reads that as a bad patch.
    """
    text = patch if patch.endswith("\n") else patch + "\n"
    return f"printf %s {shlex.quote(text)} >{shlex.quote(patch_file)} || exit 1"


def apply_command(patch_file: str) -> str:
    """Bash that applies ``patch_file`` in the current directory, wholly or not at all.

    git goes first; patch with fuzz forgives context that moved. When both refuse,
    the shell prints :data:`APPLY_FAILED_MARKER` and exits with
    :data:`APPLY_FAILED_EXIT_CODE`.
    """
    file = shlex.quote(patch_file)
    # A dry run first: half of a patch is worse than none.
    fuzzy = f"patch --batch --forward --fuzz=5 -p1 --no-backup-if-mismatch -i {file}"
    return (
        f"git -c safe.directory='*' apply --whitespace=nowarn {file}"
        f" || {{ {fuzzy} --dry-run && {fuzzy}; }}"
        f" || {{ echo '{APPLY_FAILED_MARKER}'; exit {APPLY_FAILED_EXIT_CODE}; }}"
    )


def clear_command(task: Task) -> str:
    """Bash that removes what lies where the hidden tests bring new files.

    Otherwise a candidate file of the same name keeps the whole test patch from
    applying, and its own tests are run in place of the hidden ones.
    """
    files = patched_files(task.test_patch)
    names = [shlex.quote(f.after) for f in files if f.after is not None and f.after != f.before]
    if not names:
        return ":"
    # Nearly always there is nothing, and then no process is needed to find that out.
    return (
        f"for name in {' '.join(names)}; do "
        'if [ -e "$name" ] || [ -L "$name" ]; then rm -rf -- "$name"; fi; done; unset name'
    )
