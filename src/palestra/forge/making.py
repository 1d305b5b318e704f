"""One project's tasks: bugs tried side by side, taken in their order.

Which bugs become tasks depends on the seed and on what the tests say, never on which sandbox
was faster. Harder tasks combine single bugs that were found to make tests fail.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any

from palestra.environment.grading.certificates import Certificate, CertificateStatus
from palestra.errors import InfraError, TaskError
from palestra.forge.drafts import Draft, combined, singles
from palestra.forge.failures import read_failures
from palestra.forge.journal import Journal, Tried
from palestra.forge.records import Candidate, Project
from palestra.forge.repository import diff_of
from palestra.forge.rewriting import Rewriter
from palestra.forge.rows import Unfit, build_row
from palestra.forge.stable import Stable
from palestra.records import Task
from palestra.tasks.rows import task_from_row

MAX_FAILING = 20
"""Tests that a bug may make fail; one that breaks more is no puzzle."""
_MAX_FAILING_SHARE = 0.25
# Single bugs that fail the same tests. Of several bugs at once, none: where they fail just what
# one of them fails by itself, the others do not show.
_MOST_ALIKE = 2
# Bugs at once, files that they lie in, share of the tasks. What one kind cannot give, for want
# of bugs, the first kind makes up for.
_MIX = ((2, 1, 0.22), (3, 1, 0.08), (2, 2, 0.05), (4, 2, 0.05))
_TRIES_PER_TASK = 8
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """How bugs are tried.

    Attributes:
        seed: of everything that is drawn.
        at_once: bugs tried side by side.
        slack_s: what a test run may take beyond thrice what it took without a bug.
    """

    seed: str
    at_once: int = 2
    slack_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a project gave: rows and their certificates, in the order of the drafts.

    Attributes:
        tasks: each a row and its certificate as JSON objects.
        refused: why the other bugs are no tasks → how many.
    """

    tasks: tuple[Tried, ...]
    refused: Counter[str]


Certify = Callable[[Task], Awaitable[Certificate]]
"""Grades nothing and the gold patch of a task. Raises InfraError where that cannot be done."""


class Maker:
    """Makes tasks of one project.

    Args:
        project: to seed bugs into.
        stable: its tests.
        certify: the last word on each task.
        journal: what became of bugs that were tried before.
        rewriter: asks a model for statements in other words; ``None``: ours stand.
        conditions: how.
        on_tried: told of each bug in order, with what became of it.
    """

    def __init__(
        self,
        project: Project,
        stable: Stable,
        certify: Certify,
        journal: Journal,
        conditions: Conditions,
        *,
        rewriter: Rewriter | None = None,
        on_tried: Callable[[Tried], None],
    ) -> None:
        self._project = project
        self._stable = stable
        self._certify = certify
        self._journal = journal
        self._how = conditions
        self._rewriter = rewriter
        self._on_tried = on_tried
        self._modules = {path: (project.checkout / path).read_bytes() for path in project.sources}
        self._tasks: list[Tried] = []
        self._refused: Counter[str] = Counter()
        self._alike: Counter[tuple[str, ...]] = Counter()

    async def make(self, n: int) -> Made:
        """Make up to ``n`` tasks, fewer where the project has not got the bugs for more.

        Raises:
            InfraError: sandboxes fail again and again.
        """
        harder = [(bugs, files, round(share * n)) for bugs, files, share in _MIX]
        first = n - sum(number for _, _, number in harder)
        stream = _Queue(singles(self._modules, seed=self._how.seed))
        pool: list[Draft] = []
        await self._fill(stream, first, pool)
        for bugs, files, number in harder:
            drafts = combined(
                tuple(pool),
                num_bugs=bugs,
                num_files=files,
                seed=self._how.seed,
                tries=_TRIES_PER_TASK * number,
            )
            await self._fill(_Queue(drafts), len(self._tasks) + number)
        await self._fill(stream, n)
        return Made(tasks=tuple(self._tasks), refused=self._refused)

    async def _fill(self, drafts: _Queue, n: int, pool: list[Draft] | None = None) -> None:
        """Take drafts until there are ``n`` tasks; into ``pool`` go those that became one."""
        if len(self._tasks) >= n:
            return
        async with aclosing(self._tried(drafts)) as results:
            async for draft, tried in results:
                most = _MOST_ALIKE if draft.num_sites == 1 else 1
                if tried.reason is None and self._alike[tried.failing] >= most:
                    tried = Tried(key=tried.key, reason="fails the same tests as others")
                self._on_tried(tried)
                if tried.reason is not None:
                    self._refused[tried.reason] += 1
                    continue
                self._alike[tried.failing] += 1
                self._tasks.append(tried)
                if pool is not None:
                    pool.append(draft)
                if len(self._tasks) >= n:
                    return

    async def _tried(self, drafts: _Queue) -> AsyncGenerator[tuple[Draft, Tried], None]:
        """What becomes of each draft, in their order, some of them tried ahead."""
        running: deque[asyncio.Task[Tried]] = deque()
        try:
            while draft := drafts.ahead(0):
                while len(running) < self._how.at_once and (more := drafts.ahead(len(running))):
                    running.append(asyncio.ensure_future(self._try(more)))
                tried = await running[0]
                running.popleft()
                drafts.take()
                yield draft, tried
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _try(self, draft: Draft) -> Tried:
        known = self._journal.find(draft.key)
        if known is not None:
            return known
        for attempt in range(_ATTEMPTS):
            try:
                tried = await self._made(draft)
                break
            except InfraError:
                if attempt + 1 == _ATTEMPTS:
                    raise
            except Unfit as unfit:
                tried = Tried(key=draft.key, reason=str(unfit))
                break
            except TaskError as error:  # a file that git would convert, a patch that is no text
                tried = Tried(key=draft.key, reason=error.message)
                break
        self._journal.note(tried)
        return tried

    async def _made(self, draft: Draft) -> Tried:
        candidate = await self._candidate(draft)
        row = await asyncio.to_thread(
            build_row, self._project, candidate, self._stable, seed=self._how.seed
        )
        if self._rewriter is not None:
            await self._reword(row, candidate, self._rewriter)
        try:
            task = task_from_row(row)
        except TaskError as error:
            raise Unfit(f"its row is broken: {error.message}") from None
        certificate = await self._certify(task)
        if certificate.status is not CertificateStatus.CERTIFIED:
            raise Unfit(f"not certified: {certificate.status}")
        return Tried(
            key=draft.key,
            row=row,
            certificate=asdict(certificate),
            failing=candidate.failing,
        )

    async def _reword(self, row: dict[str, Any], candidate: Candidate, rewriter: Rewriter) -> None:
        originals = {path: self._modules[path] for path in candidate.mutants}
        seed = zlib.crc32(f"{self._how.seed} {row['instance_id']}".encode())
        said = await rewriter.rewrite(row["problem_statement"], candidate, originals, seed=seed)
        row["problem_statement"] = said.text
        row["forge"]["rewritten"] = not said.problems

    async def _candidate(self, draft: Draft) -> Candidate:
        """Run all tests on the project with these bugs.

        Raises:
            Unfit: no test fails, too many do, or the run cannot be believed.
        """
        bugs = {path: m.apply(self._modules[path]) for path, m in draft.mutants.items()}
        patch = await asyncio.to_thread(diff_of, self._project.checkout, bugs)
        limit_s = 3 * self._stable.duration_s + self._how.slack_s
        share = int(_MAX_FAILING_SHARE * len(self._stable.tests))
        most = max(1, min(MAX_FAILING * draft.num_sites, share))
        trial = await self._stable.suite.run(
            patch,
            files=self._stable.files,
            timeout_s=limit_s,
            max_failing=self._stable.num_failing + most + 1,
        )
        if not trial.is_signed:
            raise Unfit("its test run hangs or breaks off")
        passed = trial.passed
        failing = tuple(test for test in self._stable.tests if test not in passed)
        if not failing:
            raise Unfit("no test fails")
        if len(failing) > most:
            raise Unfit("too many tests fail")
        if any(test not in trial.statuses for test in failing):
            raise Unfit("tests do not run any more")
        return Candidate(
            mutants=draft.mutants,
            failing=failing,
            holding=tuple(test for test in self._stable.tests if test in passed),
            failures=tuple(f for f in read_failures(trial.log) if f.test in set(failing)),
        )


class _Queue:
    """Drafts that can be looked at before they are taken."""

    def __init__(self, drafts: Iterator[Draft]) -> None:
        self._drafts = drafts
        self._ahead: deque[Draft] = deque()

    def ahead(self, index: int) -> Draft | None:
        """The draft at that place from the front, if there are so many."""
        while len(self._ahead) <= index:
            draft = next(self._drafts, None)
            if draft is None:
                return None
            self._ahead.append(draft)
        return self._ahead[index]

    def take(self) -> None:
        """Remove the one at the front."""
        self._ahead.popleft()
