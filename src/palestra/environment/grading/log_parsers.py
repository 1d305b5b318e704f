"""From the output of a test run to the status of each test.

Each parser reads what one test runner prints; rows name theirs by the names that
the swebench package uses, and the ids come out as its parsers write them, since
the lists of a row were made with them: an id ends at its first blank, and of two
lines for one id the later counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from types import MappingProxyType

from palestra.errors import TaskError

LogParser = Callable[[str], dict[str, str]]
"""Maps the output between the markers to test id → :class:`TestStatus`."""


class TestStatus(StrEnum):
    """How a test ended."""

    __test__ = False  # not a test class, whatever pytest thinks of the name

    PASSED = "PASSED"
    FAILED = "FAILED"
    ERROR = "ERROR"
    SKIPPED = "SKIPPED"
    XFAIL = "XFAIL"
    XPASS = "XPASS"


_STATUSES = frozenset(status.value for status in TestStatus)
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_CONTROL = {code: None for code in range(1, 32) if code != ord("\t")}
_PROGRESS = re.compile(r"\s*\[\s*\d+%\]$")
_OPTION = re.compile(r"(.*?)\[(.*)\]")
_SYMPY_TEST = re.compile(r"(test_\S*) (?:.* )?(ok|E|F|f|X)(?:\s+\[(?:OK|FAIL)\])?$")
_SYMPY_FAILURE = re.compile(r"_+ (\S+\.py:\S+) _+$")
_SYMPY_STATUSES = {
    "ok": TestStatus.PASSED,
    "E": TestStatus.ERROR,
    "F": TestStatus.FAILED,
    "f": TestStatus.XFAIL,
    "X": TestStatus.XPASS,
}
_DJANGO_RESULT = re.compile(r"(.*?) \.\.\. +(ok|OK|FAIL|ERROR|skipped.*)$")
_DJANGO_HEADLINE = re.compile(r"(FAIL|ERROR): (\S+)")


def parse_log_pytest(log: str) -> dict[str, str]:
    """Read the ``-rA`` summary: ``PASSED id``, ``FAILED id - reason`` and so on."""
    return dict(_summary(log.split("\n")))


def parse_log_pytest_options(log: str) -> dict[str, str]:
    """Read the ``-rA`` summary; a parameter that is a path keeps its last part only."""
    return {_short_option(test): status for test, status in _summary(log.split("\n"))}


def parse_log_pytest_v2(log: str) -> dict[str, str]:
    """Read the ``-rA`` summary in colour, and the ``id STATUS`` lines of ``-v``."""
    return dict(_summary_or_verbose(_plain_lines(log)))


def parse_log_pytest_pydantic(log: str) -> dict[str, str]:
    """Read pydantic's ``-vv`` run: as version 2, with ``[ 5%]`` behind a status."""
    lines = (_PROGRESS.sub("", line) for line in _plain_lines(log))
    return dict(_summary_or_verbose(lines))


def parse_log_matplotlib(log: str) -> dict[str, str]:
    """Read the ``-rA`` summary; newer Pythons print mouse buttons by name, the lists do not."""
    return parse_log_pytest(log.replace("MouseButton.LEFT", "1").replace("MouseButton.RIGHT", "3"))


def parse_log_sympy(log: str) -> dict[str, str]:
    """Read ``bin/test --verbose``: ``test_name ok``, and a ruled headline per failure."""
    statuses: dict[str, str] = {}
    for line in log.split("\n"):
        if failure := _SYMPY_FAILURE.match(line):
            statuses[failure[1]] = TestStatus.FAILED
        elif test := _SYMPY_TEST.match(line.strip()):
            statuses[test[1]] = _SYMPY_STATUSES[test[2]]
    return statuses


def parse_log_django(log: str) -> dict[str, str]:
    """Read Django's runner: ``test (module.Class) ... ok``, also over several lines."""
    statuses: dict[str, str] = {}
    unfinished: str | None = None  # a test that printed something before its result
    for raw in log.split("\n"):
        line = raw.strip()
        if "--version is equivalent to version" in line:
            statuses["--version is equivalent to version"] = TestStatus.PASSED
        if result := _DJANGO_RESULT.match(line):
            statuses[result[1]] = _django_status(result[2])
            unfinished = None
        elif headline := _DJANGO_HEADLINE.match(line):
            statuses[headline[2]] = _django_status(headline[1])
        elif " ... " in line:
            unfinished = line.split(" ... ")[0]
        elif unfinished is not None and line.startswith("ok"):
            statuses[unfinished] = TestStatus.PASSED
    return statuses


PARSERS: Mapping[str, LogParser] = MappingProxyType(
    {
        "parse_log_pytest": parse_log_pytest,
        "parse_log_pytest_options": parse_log_pytest_options,
        "parse_log_pytest_v2": parse_log_pytest_v2,
        "parse_log_pytest_pydantic": parse_log_pytest_pydantic,
        "parse_log_astroid": parse_log_pytest,
        "parse_log_astropy": parse_log_pytest_v2,
        "parse_log_django": parse_log_django,
        "parse_log_flask": parse_log_pytest,
        "parse_log_marshmallow": parse_log_pytest,
        "parse_log_matplotlib": parse_log_matplotlib,
        "parse_log_pvlib": parse_log_pytest,
        "parse_log_pydicom": parse_log_pytest_options,
        "parse_log_pylint": parse_log_pytest_options,
        "parse_log_pyvista": parse_log_pytest,
        "parse_log_requests": parse_log_pytest_options,
        "parse_log_signed": parse_log_pytest,
        "parse_log_scikit": parse_log_pytest_v2,
        "parse_log_seaborn": parse_log_pytest_pydantic,
        "parse_log_sphinx": parse_log_pytest_v2,
        "parse_log_sqlfluff": parse_log_pytest,
        "parse_log_sympy": parse_log_sympy,
        "parse_log_xarray": parse_log_pytest,
    }
)
"""Every parser by the name that rows give it; ``parse_log_signed`` is ours."""


def parser_named(name: str) -> LogParser:
    """The parser that a row calls ``name``.

    Raises:
        TaskError: there is none; names the known ones.
    """
    try:
        return PARSERS[name]
    except KeyError:
        known = ", ".join(sorted(PARSERS))
        raise TaskError(f"there is no log parser {name!r}", hint=f"known: {known}") from None


def _plain_lines(log: str) -> Iterator[str]:
    for line in log.split("\n"):
        yield _COLOUR.sub("", line).translate(_CONTROL)


def _summary(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        if (found := _summary_line(line)) is not None:
            yield found


def _summary_or_verbose(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        found = _summary_line(line)
        if found is None:
            words = line.split()
            if len(words) > 1 and words[-1] in _STATUSES and line[:1] == words[0][:1]:
                found = words[0], words[-1]
        if found is not None:
            yield found


def _summary_line(line: str) -> tuple[str, str] | None:
    """``STATUS id …`` at the beginning of a line, as (id, status)."""
    status, _, rest = line.partition(" ")
    # One blank only: a captured log line pads its level ("ERROR    root:loop.py:7 …").
    if status not in _STATUSES or rest.startswith(" "):
        return None
    words = rest.split(maxsplit=1)
    # Skipped tests are summed up by place ("SKIPPED [2] file.py:7: why") and have no id.
    if not words or words[0].startswith("["):
        return None
    return words[0], status


def _short_option(test: str) -> str:
    match = _OPTION.search(test)
    if match is None:
        return test
    main, option = match.groups()
    if option.startswith("/") and not option.startswith("//") and "*" not in option:
        option = "/" + option.split("/")[-1]
    return f"{main}[{option}]"


def _django_status(word: str) -> TestStatus:
    if word in ("FAIL", "ERROR"):
        return TestStatus.FAILED if word == "FAIL" else TestStatus.ERROR
    return TestStatus.SKIPPED if word.startswith("skipped") else TestStatus.PASSED
