"""From a bug that makes tests fail to a row of a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from palestra.forge.difficulty import measure
from palestra.forge.hidden_tests import without_tests
from palestra.forge.records import Candidate, Difficulty, Project
from palestra.forge.repository import commit_after, diff_between, diff_of
from palestra.forge.scan import DUPLICATE, scan
from palestra.forge.stable import Stable, file_of
from palestra.forge.statement import leaks, write_statement
from palestra.forge.suite import LOG_PARSER, WORKDIR, suite_script
from palestra.tasks.katas.draw import Draw

FORGE_VERSION = 3
"""Raised whenever equal inputs would give other rows."""
MAX_LISTED_TESTS = 400
"""Tests of a row, unless the files of its failing ones alone hold more."""
SUBSET = "forge"
# Grading asks whether a test fails and not why; explaining takes up to half of a test run.
_PLAIN = "--assert=plain"


class Unfit(Exception):
    """A bug of which no task can be made; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a task's repository has otherwise than the project's, by path; ``None``: removed.

    Attributes:
        bugs: the modules with their bugs.
        tests: the test files without the tests that fail, or not at all.
    """

    bugs: Mapping[str, bytes]
    tests: Mapping[str, bytes | None]
    all: Mapping[str, bytes | None] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "all", {**self.bugs, **self.tests})


def changes_of(project: Project, candidate: Candidate) -> Changes:
    """The repository that the agent gets, as changes to the project's.

    Raises:
        Unfit: a test file cannot be read.
    """
    bugs = {
        path: mutant.apply((project.checkout / path).read_bytes())
        for path, mutant in candidate.mutants.items()
    }
    by_file: dict[str, list[str]] = {}
    for test in candidate.failing:
        by_file.setdefault(file_of(test), []).append(test.partition("::")[2])
    tests: dict[str, bytes | None] = {}
    for path, names in by_file.items():
        try:
            data = (project.checkout / path).read_bytes()
        except OSError as error:
            raise Unfit(f"its test file {path} cannot be read: {error.strerror}") from None
        tests[path] = without_tests(data, names)
    return Changes(bugs=bugs, tests=tests)


def build_row(
    project: Project, candidate: Candidate, stable: Stable, *, seed: str
) -> dict[str, Any]:
    """The row of a candidate, in the shape of swebench 5.x with a setup patch.

    Args:
        project: that has the bugs.
        candidate: the bugs, and what the tests said of them.
        stable: the tests that count.
        seed: draws wording and the test files that are run beside those that fail.

    Raises:
        Unfit: its statement cannot be written, or would give the answer away.
    """
    checkout = project.checkout
    changes = changes_of(project, candidate)
    originals = {path: (checkout / path).read_bytes() for path in candidate.mutants}
    statement = _statement(project, candidate, changes, originals, seed)
    base_commit = commit_after(checkout, changes.all)
    mended = {**originals, **changes.tests}
    shown = {path: (checkout / path).read_bytes() for path in changes.tests}
    test_patch = diff_between(checkout, changes.all, {**changes.bugs, **shown})
    files = _files_to_run(candidate, stable, seed)
    holding = set(candidate.holding)
    difficulty = measure(candidate, changes.bugs)
    name = hashlib.sha256(f"{project.origin} {_key(candidate)}".encode()).hexdigest()[:10]
    row = {
        "instance_id": f"{project.name}__forge-{name}",
        "repo": f"forge/{project.name}",
        "base_commit": base_commit,
        "problem_statement": statement,
        "setup_patch": diff_of(checkout, changes.all),
        "patch": diff_between(checkout, changes.all, mended),
        "test_patch": test_patch,
        "FAIL_TO_PASS": list(candidate.failing),
        "PASS_TO_PASS": [test for test in stable.of_files(files) if test in holding],
        "image": project.image,
        "eval_script": suite_script(
            files, options=(*stable.suite.options, _PLAIN), hidden=(test_patch, base_commit)
        ),
        "log_parser": LOG_PARSER,
        "eval_type": "pass_and_fail",
        "workdir": WORKDIR,
        "subset": SUBSET,
        "split": "train",
        "difficulty": difficulty.level,
        "forge": _provenance(project, candidate, difficulty, seed),
    }
    left = [
        found for found in scan(row, _visible(project, changes)) if not found.startswith(DUPLICATE)
    ]
    if left:
        raise Unfit(f"the answer lies around: {left[0]}")
    return row


def _visible(project: Project, changes: Changes) -> Iterator[tuple[str, bytes]]:
    """What the agent's repository holds."""
    for path in sorted(project.checkout.rglob("*")):
        name = path.relative_to(project.checkout).as_posix()
        if name.startswith(".git/") or path.is_symlink() or not path.is_file():
            continue
        data = changes.all[name] if name in changes.all else path.read_bytes()
        if data is not None:
            yield name, data


def _statement(
    project: Project,
    candidate: Candidate,
    changes: Changes,
    originals: Mapping[str, bytes],
    seed: str,
) -> str:
    def source(path: str) -> str | None:
        if path not in project.tests and path not in changes.tests:
            return None
        return (project.checkout / path).read_text("utf-8", "replace")

    if not candidate.failures:
        raise Unfit("no failure can be read from the log")
    text = write_statement(project, candidate, test_source=source, seed=f"{seed} {_key(candidate)}")
    found = leaks(text, candidate, originals)
    if found:
        raise Unfit(f"its statement gives it away: {found[0]}")
    return text


def _files_to_run(candidate: Candidate, stable: Stable, seed: str) -> tuple[str, ...]:
    """The files of the failing tests, and as many others as the row has room for."""
    chosen = sorted({file_of(test) for test in candidate.failing})
    room = MAX_LISTED_TESTS - len(stable.of_files(chosen))
    others = [file for file in stable.files if file not in chosen]
    for file in Draw(f"forge files {seed} {_key(candidate)}").shuffled(others):
        size = len(stable.of_files([file]))
        if size <= room:
            chosen.append(file)
            room -= size
    return tuple(sorted(chosen))


def _provenance(
    project: Project, candidate: Candidate, difficulty: Difficulty, seed: str
) -> dict[str, Any]:
    return {
        "version": FORGE_VERSION,
        "seed": seed,
        "project": project.name,
        "project_version": project.version,
        "licence": project.licence,
        "origin": project.origin,
        "python": project.python,
        "requirements": list(project.requirements),
        "mutation": {path: mutant.id for path, mutant in sorted(candidate.mutants.items())},
        "kinds": sorted(site.kind for m in candidate.mutants.values() for site in m.sites),
        "difficulty": asdict(difficulty),
    }


def _key(candidate: Candidate) -> str:
    return " ".join(f"{path}:{mutant.id}" for path, mutant in sorted(candidate.mutants.items()))
