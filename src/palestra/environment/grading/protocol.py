"""What a grader is: patch in, verdict out, in a sandbox of its own."""

from __future__ import annotations

from typing import Protocol

from palestra.records import Task, Verdict


class Grader(Protocol):
    """Judges a patch with the task's hidden tests."""

    async def grade(self, task: Task, patch: str) -> Verdict:
        """Grade ``patch`` in a pristine sandbox of ``task``.

        Raises:
            SandboxError: the sandbox failed.
            GradingError: the tests did not run to their end for reasons that are
                not the patch's.
        """
        ...
