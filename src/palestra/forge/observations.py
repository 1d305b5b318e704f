"""What was expected of an example and what happened instead, in words."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from palestra.forge.checks import Equal, Holds, Raises
from palestra.forge.examples import Example
from palestra.forge.explanations import Call, Compared, called, calls, compared
from palestra.forge.nodes import BUILTINS
from palestra.forge.records import Failure, Frame
from palestra.tasks.katas.draw import Draw

MAX_VALUE_CHARS = 600
"""Of a value that is shown; the rest of a longer one is cut off."""
_MAX_DETAIL_LINES = 20
_MAX_TRACE = 12
_SHORT_CHARS = 60
_ADVICE = re.compile(r"Use -v+ to get|[Ff]ull (?:output|diff) truncated|\.\.\.[Ff]ull|Diff is \d+")
_OTHER_MESSAGE = re.compile(
    r"^(?:Regex pattern did not match|Pattern .* (?:does not match|not found in) )"
    r"|^\".*\" does not match \""
)
_SAID = re.compile(r"(?:Actual message|Input): (.*)|(?:does not match|not found in) (.*)")
_DID_NOT_RAISE = re.compile(r"DID NOT (?:RAISE|WARN)|not raised|not triggered")
_NUMBERED = re.compile(r"^\d{3,5} ")
_EXPECTED = ("Expected:", "What I expected:", "It should be:")
_ACTUAL = ("Actual:", "What I got:", "Instead I get:")
_TRUE = ("This should be true.", "I expected this to be true.", "This ought to hold.")
_ERROR = ("This fails:", "It ends in an error:", "Instead of a result there is an error:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What happened.

    Attributes:
        kind: ``value``, ``condition``, ``silent`` (an exception did not come) or ``error``.
        error: the exception that came, or did not; empty where none is in play.
        paragraphs: in Markdown.
    """

    kind: str
    error: str
    paragraphs: tuple[str, ...]


def traced_call(failure: Failure) -> Call | None:
    """The call whose value the failed comparison looked at, if the explanation names it."""
    sides = compared(failure.message)
    for call in calls(failure.message):
        function = (called(call.text) or "").partition(".")[0]
        if function in BUILTINS or function in ("self", "pytest", "re") or sides is None:
            continue
        if len(call.text) <= MAX_VALUE_CHARS and call.value in (sides.left, sides.right):
            return call
    return None


def observe(
    failure: Failure,
    example: Example | None,
    call: Call | None,
    *,
    sources: Collection[str],
    draw: Draw,
) -> Observed:
    """Say what was expected and what happened.

    Args:
        failure: of a test.
        example: made of it.
        call: that is shown in the example's place.
        sources: paths of the library's modules.
        draw: of the wording.
    """
    check = example.check if example is not None else None
    frames = [frame for frame in failure.frames if frame.path in sources]
    if _DID_NOT_RAISE.search(failure.message):
        return _silent(failure, check, draw)
    if failure.error in ("DocTestFailure", "UnexpectedException"):
        return Observed(kind="value", error="", paragraphs=(fenced(_doctest(failure.message)),))
    if _OTHER_MESSAGE.search(failure.message) and isinstance(check, Raises):
        return _message(failure, check, draw)
    if frames or failure.error not in ("AssertionError", "Failed"):
        return _error(failure, check, frames, draw)
    if isinstance(check, Raises):
        return _silent(failure, check, draw)
    sides = compared(failure.message)
    if sides is not None and (call is not None or isinstance(check, Equal)):
        return _value(failure, check, call, sides, draw)
    return _condition(failure, check, draw)


def _silent(failure: Failure, check: object, draw: Draw) -> Observed:
    if isinstance(check, Raises):
        name, match, warns = check.exception, check.match, check.warns
    else:
        found = re.search(r"(?:RAISE|WARN)\S*\s+(?:<class ')?([\w.]+)|^(\w+) not", failure.message)
        name = (found[1] or found[2]) if found else "an exception"
        match, warns = None, "WARN" in failure.message
    what = "warning" if warns else "exception"
    expected = f"a warning of `{name}`" if warns else f"that `{name}` is raised"
    if match:
        expected += f", with a message that matches `{match}`"
    happened = draw.pick((f"There is no {what}.", "Nothing of the kind happens.", f"No {what}."))
    return Observed(
        kind="silent", error=name, paragraphs=(f"{draw.pick(_EXPECTED)} {expected}.", happened)
    )


def _message(failure: Failure, check: Raises, draw: Draw) -> Observed:
    wanted = f", with a message that matches `{check.match}`" if check.match else ""
    paragraphs = [f"{draw.pick(_EXPECTED)} `{check.exception}`{wanted}."]
    said = _SAID.search(failure.message)
    told = (said[1] or said[2]) if said else "\n".join(_lines(failure.message))
    paragraphs += ["The message is another one:", fenced(_shortened(told))]
    return Observed(kind="message", error=check.exception, paragraphs=tuple(paragraphs))


def _error(failure: Failure, check: object, frames: Sequence[Frame], draw: Draw) -> Observed:
    paragraphs = []
    if isinstance(check, Raises):
        paragraphs.append(f"{draw.pick(_EXPECTED)} `{check.exception}`")
        if check.match:
            paragraphs[-1] += f", with a message that matches `{check.match}`"
        paragraphs[-1] += "."
    elif isinstance(check, Equal):
        expected = ast.unparse(check.expected)
        if len(expected) <= MAX_VALUE_CHARS and not isinstance(check.expected, ast.Name):
            paragraphs += [draw.pick(_EXPECTED), fenced(expected)]
    paragraphs += [draw.pick(_ERROR), fenced(_traceback(failure, frames))]
    return Observed(
        kind="error", error=failure.error.rpartition(".")[2], paragraphs=tuple(paragraphs)
    )


def _value(
    failure: Failure, check: object, call: Call | None, sides: Compared, draw: Draw
) -> Observed:
    actual_is_left = check.actual_is_left if isinstance(check, Equal) else True
    if call is not None:
        actual_is_left = call.value == sides.left
    actual, expected = sides.left, sides.right
    if not actual_is_left:
        actual, expected = expected, actual
    if "..." in expected and isinstance(check, Equal):
        expected = _literal(check.expected) or expected
    paragraphs = [
        draw.pick(_EXPECTED),
        fenced(_shortened(expected)),
        draw.pick(_ACTUAL),
        fenced(_shortened(actual)),
    ]
    if max(len(actual), len(expected)) > _SHORT_CHARS or "..." in actual:
        details = _details(failure.message)
        if details:
            paragraphs += ["The difference:", fenced(details)]
    return Observed(kind="value", error="", paragraphs=tuple(paragraphs))


def _literal(node: ast.expr) -> str | None:
    try:
        return repr(ast.literal_eval(node))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None


def _condition(failure: Failure, check: object, draw: Draw) -> Observed:
    said = _lines(failure.message)
    paragraphs = [draw.pick(_TRUE)] if isinstance(check, Holds) else []
    if any(said):
        paragraphs += [draw.pick(_ACTUAL), fenced("\n".join(said))]
    return Observed(kind="condition", error="", paragraphs=tuple(paragraphs))


def _doctest(message: str) -> str:
    """The last example of a doctest, without the numbers of its lines."""
    lines = [_NUMBERED.sub("", line) for line in _lines(message)]
    starts = [index for index, line in enumerate(lines) if line.lstrip().startswith(">>>")]
    return textwrap.dedent("\n".join(lines[starts[-1] if starts else 0 :]))


def _traceback(failure: Failure, frames: Sequence[Frame]) -> str:
    """The library's part of a traceback, without any source lines."""
    half = _MAX_TRACE // 2
    lines = []
    for index, frame in enumerate(frames):
        if len(frames) <= _MAX_TRACE or not half <= index < len(frames) - half:
            place = f", in {frame.function}" if frame.function else ""
            lines.append(f'  File "{frame.path}", line {frame.line}{place}')
        elif index == half:
            lines.append("  ...")
    said = _lines(failure.message)
    last = f"{failure.error}: {said[0]}" if said and said[0] else failure.error
    head = ["Traceback (most recent call last):"] if lines else []
    return "\n".join([*head, *lines, last, *said[1:]])


def _lines(message: str) -> list[str]:
    lines = [line.rstrip()[:MAX_VALUE_CHARS] for line in message.split("\n")]
    lines = [line for line in lines if not _ADVICE.search(line)]
    return lines[:_MAX_DETAIL_LINES]


def _details(message: str) -> str:
    """Where two long values differ."""
    lines = [line for line in _lines(message)[1:] if line.strip()]
    lines = [line for line in lines if not line.startswith("assert ")]
    return "\n".join(line for line in lines if not line.lstrip().startswith(("+  ", "+    ")))


def _shortened(value: str) -> str:
    return value if len(value) <= MAX_VALUE_CHARS else value[:MAX_VALUE_CHARS] + "..."


def fenced(text: str, language: str = "") -> str:
    """A block of code in Markdown."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
