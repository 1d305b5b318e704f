"""A task's statement: the issue that a user of the library would write, from what is observed."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from palestra.forge.examples import example_of
from palestra.forge.explanations import called
from palestra.forge.observations import fenced, observe, traced_call
from palestra.forge.records import Candidate, Failure, Project
from palestra.tasks.katas.draw import Draw

MAX_EXAMPLES = 3
"""Failures that a statement shows."""
MIN_TELLING_CHARS = 12
"""A changed line with fewer characters, blanks left out, gives nothing away."""

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,16}\b")
_TEMPORARY = re.compile(r"/tmp/pytest-of-[^/\s]{1,40}/pytest-\d{1,9}/[^/\s'\")]{1,200}")
_BLANKS = re.compile(r"\s+")
_TRIVIAL = re.compile(
    r"(?:return|yield|raise|del|pass|continue|break|else|try|finally|import|from)\b[\w\s.:]*\(?\)?"
    r"|(?:el)?if \w+(?:\.\w+)*:|except [\w.]+(?: as \w+)?:"
)
_DIFF = re.compile(r"^(?:diff --git |@@ -\d)", re.MULTILINE)
_TITLES: Mapping[str, Sequence[str]] = {
    "value": ("{0} returns a wrong result", "Wrong result from {0}", "{0} gives a wrong result"),
    "condition": ("{0} does not do what it should", "Unexpected behaviour of {0}"),
    "message": ("{0} raises {1} with the wrong message", "Wrong message of {1} from {0}"),
    "silent": ("{0} does not raise {1}", "{0} should raise {1}", "No {1} from {0}"),
    "error": ("{0} fails with {1}", "{1} from {0}", "{0} raises {1}"),
}
_OPENINGS = (
    "I am using {name} {version} with Python {python}.",
    "This is {name} {version} on Python {python}.",
    "Seen with {name} {version}, Python {python}.",
)
_WHOLE = ("To reproduce:", "What I did:", "An example:", "Steps to reproduce:")
_PART = ("This is what fails:", "It happens here:", "The call in question:")
_ANOTHER = ("Something else that is wrong:", "Another example:", "This does not work either:")
_FOLDERS = ("src", "lib", "python")
_LIBRARY = "the library"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """One failure as a statement shows it."""

    title: str
    code: str
    body: str


def write_statement(
    project: Project,
    candidate: Candidate,
    *,
    test_source: Callable[[str], str | None],
    seed: str,
) -> str:
    """Write the statement of a task, in Markdown.

    It shows up to three failures, of different test functions first: the call, what was
    expected, what happened. Of where the bug is it says only what a traceback says, which
    comes without source lines. Equal arguments give equal statements, whatever addresses and
    temporary folders the log has.

    Args:
        project: with the bugs.
        candidate: at least one failure of its tests.
        test_source: path → text of a test file with the tests that are hidden, or ``None``.
        seed: draws the wording.

    Raises:
        ValueError: the candidate has no failure.
    """
    if not candidate.failures:
        raise ValueError("a statement is written from failures, and there is none")
    draw = Draw(f"forge statement {seed}")
    shown: dict[str, _Shown] = {}
    for failure in _ordered(candidate.failures):
        text = test_source(failure.test.partition("::")[0])
        intros = () if shown else (_WHOLE, _PART)
        one = _show(failure, text, project.sources, intros, draw)
        shown.setdefault(one.code or one.body, one)
        if len(shown) == MAX_EXAMPLES:
            break
    first, *others = shown.values()
    opening = draw.pick(_OPENINGS).format(
        name=project.name, version=project.version, python=project.python
    )
    parts = [f"# {first.title}", opening, first.body]
    for other in others:
        parts += [draw.pick(_ANOTHER), other.body]
    text = _without_chance("\n\n".join(parts)) + "\n"
    # Functions inside of tests say in which test they are.
    return re.sub(r"\b\w+\.<locals>\.", "", text)


def leaks(statement: str, candidate: Candidate, originals: Mapping[str, bytes]) -> tuple[str, ...]:
    """Why a statement gives the answer away; empty where it does not.

    It does so with a line that a bug changed, before or after (blanks do not count, nor do
    short lines and such as ``return None``), with a diff, with the name of a test function
    that fails, or with the name of a kind of bug.

    Args:
        statement: to look at.
        candidate: the bugs.
        originals: path → text without bugs, of the modules that have any at least.
    """
    found: list[str] = []
    text = _dense(statement)
    for path, mutant in sorted(candidate.mutants.items()):
        for kind, line in _changed(originals[path], mutant.apply(originals[path])):
            if is_telling(line) and _dense(line) in text:
                found.append(f"it holds the {kind} line {line.strip()!r} of {path}")
        kinds = {site.kind for site in mutant.sites if "_" in site.kind}
        found += [f"it names the kind {kind}" for kind in sorted(kinds) if kind in statement]
    if _DIFF.search(statement):
        found.append("it holds a diff")
    found += [f"it names the test {name}" for name in _named(statement, candidate.failing)]
    return tuple(dict.fromkeys(found))


def _ordered(failures: Sequence[Failure]) -> list[Failure]:
    """The first failure of each test function, then the others."""
    seen: set[str] = set()
    firsts: list[Failure] = []
    others: list[Failure] = []
    for failure in failures:
        function = failure.test.partition("[")[0]
        (others if function in seen else firsts).append(failure)
        seen.add(function)
    return [*firsts, *others]


def _show(
    failure: Failure,
    text: str | None,
    sources: Collection[str],
    intros: Sequence[Sequence[str]],
    draw: Draw,
) -> _Shown:
    packages = {package_of(path) for path in sources}
    example = example_of(failure, text, packages) if text is not None else None
    is_whole = example is not None and example.is_whole
    call = None if is_whole else traced_call(failure)
    code = call.text if call is not None else example.code if example is not None else ""
    observed = observe(failure, example, call, sources=sources, draw=draw)
    parts = [fenced(code, "python")] if code else []
    if parts and intros:
        parts.insert(0, draw.pick(intros[0 if is_whole or call is not None else 1]))
    subject = called(call.text) if call is not None else example.subject if example else None
    if not subject:
        functions = [f.function for f in failure.frames if f.path in sources and f.function]
        subject = functions[0] if functions else failure.test.rpartition(".")[2]
        is_test = not functions and not failure.error.startswith("Doc")
        subject = None if is_test else subject
    name = f"`{subject}`" if subject else _LIBRARY
    title = draw.pick(_TITLES[observed.kind]).format(name, f"`{observed.error}`")
    title = title[0].upper() + title[1:]
    return _Shown(title=title, code=code, body="\n\n".join([*parts, *observed.paragraphs]))


def package_of(path: str) -> str:
    """The top-level name that a module is imported under."""
    first, *rest = path.split("/")
    if first in _FOLDERS and rest:
        first = rest[0]
    return first.removesuffix(".py")


def _without_chance(text: str) -> str:
    """Without what is another in each run."""
    return _TEMPORARY.sub("/tmp/folder", _ADDRESS.sub("0x...", text))


def _changed(original: bytes, wrong: bytes) -> Iterator[tuple[str, str]]:
    """The lines that are in one text only, with the name of that text."""
    before = original.decode("utf-8", "replace").splitlines()
    after = wrong.decode("utf-8", "replace").splitlines()
    for line in dict.fromkeys(before):
        if before.count(line) > after.count(line):
            yield "original", line
    for line in dict.fromkeys(after):
        if after.count(line) > before.count(line):
            yield "wrong", line


def is_telling(line: str) -> bool:
    """Whether a line of code says something of its own."""
    return len(_dense(line)) >= MIN_TELLING_CHARS and not _TRIVIAL.fullmatch(line.strip())


def _dense(text: str) -> str:
    return _BLANKS.sub("", text)


def _named(statement: str, tests: Collection[str]) -> Iterator[str]:
    words = set(re.findall(r"\w+", statement))
    for name in sorted({test.partition("[")[0].rpartition("::")[2] for test in tests}):
        if "test" in name.lower() and name in words:
            yield name
