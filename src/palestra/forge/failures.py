"""From the log of a pytest run to how each failing test failed.

Whoever runs in the sandbox may print whatever it likes, so nothing here decides anything: a
forged log gives fewer failures, or failures with other words in them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from palestra.forge.records import Failure, Frame

MAX_LINE_CHARS = 2000
"""What is read of one line; no expression here ever sees more."""
MAX_MESSAGE_LINES = 60
"""What is kept of what an exception said."""
MAX_FRAMES = 100
"""What is kept of a traceback, half of it from either end."""
_MAX_BODY_LINES = 5000

_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_FRAME = re.compile(r"(\S.*?):(\d{1,7}): in (\S.*)$")
_NATIVE_FRAME = re.compile(r'[\s|+]*File "([^"]+)", line (\d{1,7})(?:, in (\S.*))?$')
_LAST_WORD = re.compile(r"(/?\S+):(\d{1,7}): (DocTestFailure|UnexpectedException)$")
_CAPTURED = re.compile(r"-+ (?:Captured .*|generated xml .*) -+$")
_CHAINED = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)
_ERROR = re.compile(r"([A-Za-z_][\w.]*)(?:: (.*))?$", re.DOTALL)
_SUMMARY = re.compile(r"(?:FAILED|SUBFAIL\S*(?: .*?)?) (\S+::.+|\S+\.\w+(?: - .*)?)$")
_ERROR_AT = re.compile(r"ERROR (?:at (?:setup|teardown) of|collecting) ")
_DOCTEST = "[doctest] "


@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    """What heading and summary line of one failure have in common."""

    is_error: bool
    name: str


@dataclass(slots=True)
class _Section:
    """What stands under one heading."""

    key: _Key
    lines: list[str] = field(default_factory=list)
    is_over: bool = False


def read_failures(log: str) -> tuple[Failure, ...]:
    """Read the failing tests of a run with ``-rA --tb=short`` (``-rfE`` does as well).

    A section counts only where the summary at the end names as many tests that it can belong
    to as there are sections of that name. Never raises; takes time linear in the log.

    Args:
        log: what pytest printed, colours or not.

    Returns:
        In the order of the summary, one for each test: its first failure that has a message.
    """
    sections, ids, root = _parts(log)
    failures: dict[str, Failure] = {}
    for key, tests in ids.items():
        own = sections.get(key, [])
        found = own if len(own) == len(tests) else _of_files(own, tests)
        for test, section in zip(tests, found, strict=True):
            failure = None if section is None else _failure(test, section.lines, root)
            known = failures.get(test)
            if failure is not None and (known is None or not known.message):
                failures[test] = failure
    order = [test for tests in ids.values() for test in tests]
    return tuple(failures[test] for test in dict.fromkeys(order) if test in failures)


def _parts(log: str) -> tuple[dict[_Key, list[_Section]], dict[_Key, list[str]], str]:
    """The sections, the tests that the last summary names, and pytest's root folder."""
    sections: dict[_Key, list[_Section]] = {}
    ids: dict[_Key, list[str]] = {}
    root = ""
    part = ""
    section: _Section | None = None
    for line in _lines(log):
        title = _ruled(line, "=")
        if title is not None:
            part, section = title, None
            if title == "short test summary info":
                ids = {}
        elif part in ("ERRORS", "FAILURES"):
            heading = _ruled(line, "_")
            if heading is not None:
                section = _Section(_key_of_heading(heading))
                sections.setdefault(section.key, []).append(section)
            elif section is not None:
                _add(section, line)
        elif part == "short test summary info":
            named = _named(line)
            if named is not None:
                ids.setdefault(named[0], []).append(named[1])
        elif not root and line.startswith("rootdir: "):
            root = line.removeprefix("rootdir: ").partition(",")[0].rstrip("/") + "/"
    return sections, ids, root


def _lines(log: str) -> Iterator[str]:
    start = 0
    while start < len(log):
        end = log.find("\n", start)
        end = len(log) if end < 0 else end
        line = log[start : min(end, start + MAX_LINE_CHARS)]
        yield _COLOUR.sub("", line).rstrip("\r")
        start = end + 1


def _ruled(line: str, character: str) -> str | None:
    """The title in ``=== title ===``."""
    if not (line.startswith(character) and line.endswith(character)):
        return None
    inner = line.strip(character)
    if len(inner) < 3 or inner[0] != " " or inner[-1] != " ":
        return None
    title = inner.strip()
    return None if not title.strip(character + " ") else title


def _key_of_heading(heading: str) -> _Key:
    shortened = _ERROR_AT.sub("", heading, count=1)
    name = shortened.removeprefix(_DOCTEST).split(maxsplit=1)[0]
    return _Key(is_error=shortened != heading, name=name)


def _named(line: str) -> tuple[_Key, str] | None:
    """The key and the id of a failing test that a line of the summary names."""
    is_error = line.startswith("ERROR ")
    found = None if is_error else _SUMMARY.match(line)
    rest = line.removeprefix("ERROR ") if is_error else found[1] if found else ""
    if not rest or rest[0] == " ":
        return None
    test = rest.split(maxsplit=1)[0]
    path, _, inner = test.partition("::")
    function, bracket, parameters = inner.partition("[")
    name = function.replace("::", ".") + bracket + parameters
    return _Key(is_error=is_error, name=name or path), test


def _add(section: _Section, line: str) -> None:
    if section.is_over or _CAPTURED.match(line):
        section.is_over = True
    elif len(section.lines) < _MAX_BODY_LINES:
        section.lines.append(line)


def _of_files(sections: Sequence[_Section], tests: list[str]) -> Sequence[_Section | None]:
    """For each test the only section that begins in its file, if there is just one."""
    by_file: dict[str, list[_Section]] = {}
    for section in sections:
        first = next(_frames(section.lines), None)
        if first is not None:
            by_file.setdefault(first.path, []).append(section)
    found: list[_Section | None] = []
    files = [test.partition("::")[0] for test in tests]
    named = Counter(files)
    for file in files:
        own = by_file.get(file, [])
        found.append(own[0] if len(own) == 1 and named[file] == 1 else None)
    return found


def _failure(test: str, lines: list[str], root: str) -> Failure:
    start = max((i + 1 for i, line in enumerate(lines) if line.strip() in _CHAINED), default=0)
    lines = lines[start:]
    frames = [
        Frame(path=f.path.removeprefix(root), line=f.line, function=f.function)
        for f in _frames(lines)
    ]
    said = [line[4:] for line in lines if line.startswith("E   ") or line == "E"]
    if said:
        error, message = _error(said)
    else:
        error, message = _without_exception(lines)
    return Failure(test=test, error=error, message=message, frames=_ends(frames))


def _frames(lines: list[str]) -> Iterator[Frame]:
    for line in lines:
        if line.startswith(("E   ", "    ")) and '  File "' not in line:
            continue
        found = _FRAME.match(line) or _NATIVE_FRAME.match(line)
        if found:
            yield Frame(path=found[1], line=int(found[2]), function=found[3])
        elif last := _LAST_WORD.match(line):
            yield Frame(path=last[1], line=int(last[2]), function=None)


def _error(said: list[str]) -> tuple[str, str]:
    first, rest = said[0], said[1:]
    if first.startswith("assert ") or first == "assert":
        return "AssertionError", _joined(said)
    found = _ERROR.match(first)
    if found is None:
        return "Exception", _joined(said)
    return found[1], _joined([found[2] or "", *rest])


def _without_exception(lines: list[str]) -> tuple[str, str]:
    """Doctests, and what a plugin says instead of a traceback."""
    for index in range(len(lines) - 1, -1, -1):
        if last := _LAST_WORD.match(lines[index]):
            return last[3], _joined(lines[:index])
    return "Failed", _joined([line for line in lines if not _FRAME.match(line)])


def _joined(lines: list[str]) -> str:
    return "\n".join(line.rstrip() for line in lines[:MAX_MESSAGE_LINES]).strip("\n")


def _ends(frames: list[Frame]) -> tuple[Frame, ...]:
    half = MAX_FRAMES // 2
    return tuple(frames if len(frames) <= MAX_FRAMES else [*frames[:half], *frames[-half:]])
