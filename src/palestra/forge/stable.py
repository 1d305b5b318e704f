"""Which tests of a project can be relied on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from palestra.errors import TaskError
from palestra.forge.suite import Suite, Trial

# Each once: what depends on the order of sets or dicts fails under one of them.
HASH_SEEDS = ("0", "1", "4242")
_TOO_FEW = 5
_TAIL_CHARS = 400
# As configured; without the project's own options, which may name plugins that are not there.
_OPTIONS: tuple[tuple[str, ...], ...] = ((), ("-o", "addopts="))
# Tests that draw their own inputs are other tests each time, and hang or fail as these fall.
_DRAWS = re.compile(r"^\s*(?:from|import)\s+hypothesis\b", re.MULTILINE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stable:
    """The tests that passed each time.

    Attributes:
        tests: sorted.
        suite: with the options under which they ran.
        duration_s: of the longest run, sandbox included.
        num_unsteady: tests that passed in some runs only, or draw their own inputs.
        num_failing: tests that fail without any bug, at most.
    """

    tests: tuple[str, ...]
    suite: Suite
    duration_s: float
    num_unsteady: int
    num_failing: int = 0

    def of_files(self, files: Sequence[str]) -> tuple[str, ...]:
        """The stable tests of these files."""
        wanted = set(files)
        return tuple(test for test in self.tests if file_of(test) in wanted)

    @property
    def files(self) -> tuple[str, ...]:
        """The files that hold at least one, sorted."""
        return tuple(sorted({file_of(test) for test in self.tests}))


async def find_stable(
    suites: Sequence[Suite], *, name: str, checkout: Path, timeout_s: float
) -> Stable:
    """Run the project's tests under several hash seeds.

    Args:
        suites: of one project, with other options each; the first that works is taken.
        name: of the project, for errors.
        checkout: folder with the project's repository.
        timeout_s: for each run.

    Raises:
        TaskError: too few tests pass, or the test run cannot be believed.
        InfraError: sandbox or grader failed.
    """
    for suite in suites:
        first = await suite.run(timeout_s=timeout_s, env={"PYTHONHASHSEED": HASH_SEEDS[0]})
        if len(_usable(first)) >= _TOO_FEW:
            break
    else:
        raise TaskError(f"{name}: {_why(first, timeout_s)}")
    again = [
        await suite.run(timeout_s=timeout_s, env={"PYTHONHASHSEED": seed})
        for seed in HASH_SEEDS[1:]
    ]
    trials = [first, *again]
    if not all(trial.is_signed for trial in trials):
        raise TaskError(f"{name}: its tests do not come to an end each time")
    usable = [_usable(trial) for trial in trials]
    drawn = {test for test in frozenset.union(*usable) if _draws(checkout / file_of(test))}
    steady = frozenset.intersection(*usable) - drawn
    if len(steady) < _TOO_FEW:
        raise TaskError(f"{name}: only {len(steady)} of its tests pass each time")
    return Stable(
        tests=tuple(sorted(steady)),
        suite=suite,
        duration_s=max(trial.duration_s for trial in trials),
        num_unsteady=len(frozenset.union(*usable) - steady),
        num_failing=max(map(_num_failing, trials)),
    )


def option_sets() -> tuple[tuple[str, ...], ...]:
    """The options of pytest that are tried, in this order."""
    return _OPTIONS


def file_of(test: str) -> str:
    """The file of a test id."""
    return test.partition("::")[0]


def _usable(trial: Trial) -> frozenset[str]:
    """Passed, and with an id that a row can hold."""
    return frozenset(
        test for test in trial.passed if file_of(test).endswith(".py") and not _CONTROL.search(test)
    )


def _draws(file: Path) -> bool:
    try:
        return _DRAWS.search(file.read_text(errors="replace")) is not None
    except OSError:
        return False


def _num_failing(trial: Trial) -> int:
    return sum(status in ("FAILED", "ERROR") for status in trial.statuses.values())


def _why(trial: Trial, timeout_s: float) -> str:
    tail = trial.log[-_TAIL_CHARS:]
    if trial.is_signed:
        return f"{len(_usable(trial))} of its tests pass, too few to go by; the log ends: {tail!r}"
    if trial.duration_s >= timeout_s:
        return f"its tests are not through after {timeout_s:.0f} s"
    return f"its test run ended without a word that can be believed; the log ends: {tail!r}"
