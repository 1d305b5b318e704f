"""Grading with a look at what it costs: what certificates are made of."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from palestra.environment.grading.certificates import GradedRun, graded
from palestra.environment.grading.protocol import Grader
from palestra.environment.sandboxes.protocol import (
    ImageProgress,
    OnProgress,
    Sandbox,
    SandboxBackend,
    SandboxLimits,
    SandboxSpec,
)
from palestra.errors import ImageError
from palestra.records import Task


class Bench(Protocol):
    """Where the patches of tasks are graded for their certificates."""

    async def identify(self, task: Task) -> str:
        """What the task's image is made of, once it is here.

        Raises:
            InfraError: it cannot be brought.
        """
        ...

    async def grade(self, task: Task, name: str, patch: str) -> GradedRun:
        """Grade ``patch``, which the certificate shall call ``name``.

        Raises:
            InfraError: no verdict came.
        """
        ...


class SandboxBench:
    """Grades in sandboxes, and reads from each the most memory that it had.

    Args:
        backend: starts them.
        make_grader: a grader on a backend; it must not reuse verdicts.
    """

    def __init__(
        self, backend: SandboxBackend, make_grader: Callable[[SandboxBackend], Grader]
    ) -> None:
        self._backend = backend
        self._make_grader = make_grader

    async def identify(self, task: Task) -> str:
        """What the task's image is made of; it is pulled where it is not there.

        Raises:
            InfraError: it cannot be brought.
        """
        try:
            return await self._backend.identify(task.image)
        except ImageError:
            await self._backend.ensure_image(task.image, _ignore)
        return await self._backend.identify(task.image)

    async def grade(self, task: Task, name: str, patch: str) -> GradedRun:
        """Grade ``patch`` in a sandbox of its own.

        Raises:
            InfraError: no verdict came.
        """
        # Before the clock runs: it is done once, and not for each grading.
        await self._backend.prepare(SandboxSpec.for_task(task, SandboxLimits(), {}))
        metered = _Metered(self._backend)
        verdict = await self._make_grader(metered).grade(task, patch)
        return graded(name, verdict, peak_memory_bytes=metered.peak_memory_bytes)


class _Metered:
    """Another backend, of whose sandboxes the peak memory is kept."""

    def __init__(self, backend: SandboxBackend) -> None:
        self._backend = backend
        self.peak_memory_bytes: int | None = None

    @property
    def name(self) -> str:
        return self._backend.name

    async def check(self) -> None:
        await self._backend.check()

    async def ensure_image(self, image: str, on_progress: OnProgress) -> None:
        await self._backend.ensure_image(image, on_progress)

    async def identify(self, image: str) -> str:
        return await self._backend.identify(image)

    async def prepare(self, spec: SandboxSpec) -> None:
        await self._backend.prepare(spec)

    @asynccontextmanager
    async def start(self, spec: SandboxSpec) -> AsyncIterator[Sandbox]:
        async with self._backend.start(spec) as sandbox:
            try:
                yield sandbox
            finally:
                peak = sandbox.peak_memory_bytes()
                if peak is not None:
                    self.peak_memory_bytes = max(peak, self.peak_memory_bytes or 0)


def _ignore(progress: ImageProgress) -> None:
    """Certifying tells of tasks, not of bytes."""
