"""A grader that judges the same patch of the same task once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from weakref import WeakValueDictionary

from palestra.environment.grading.protocol import Grader
from palestra.records import Task, Verdict

MAX_VERDICTS = 4096

_Key = tuple[Task, str]


class ReusingGrader:
    """Remembers verdicts by task and patch, both in full.

    Siblings of a group often hand in the same patch; where tests always say the same of
    the same code, running them once is enough. Only verdicts are kept: a grading that
    failed or was cancelled is done again by whoever asks next.

    Args:
        grader: judges what has not been judged.
        max_verdicts: how many are remembered; the longest unused goes first.
    """

    def __init__(self, grader: Grader, *, max_verdicts: int = MAX_VERDICTS) -> None:
        self._grader = grader
        self._max_verdicts = max_verdicts
        self._verdicts: OrderedDict[_Key, Verdict] = OrderedDict()
        self._locks: WeakValueDictionary[_Key, asyncio.Lock] = WeakValueDictionary()

    async def grade(self, task: Task, patch: str) -> Verdict:
        """The verdict on ``patch``; who asks while it is being judged waits for it.

        Raises:
            SandboxError: the sandbox failed.
            GradingError: the tests did not run to their end for reasons that are
                not the patch's.
        """
        key = (task, patch)
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        async with lock:
            if key not in self._verdicts:
                self._verdicts[key] = await self._grader.grade(task, patch)
                if len(self._verdicts) > self._max_verdicts:
                    self._verdicts.popitem(last=False)
            self._verdicts.move_to_end(key)
            return self._verdicts[key]
