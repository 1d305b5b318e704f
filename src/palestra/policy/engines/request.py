"""One call of ``generate`` on its way through the engine."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from palestra.errors import ContextOverflow
from palestra.records import FinishReason, Generation, SamplingParams, Segment

Ids = NDArray[np.int64]


class Request:
    """The ids of one sequence so far, what ends it, and who waits for it.

    Made and validated by the caller's thread, afterwards touched only by the
    engine's. ``future`` is the exception: cancelling it is how a caller leaves.

    Args:
        prompt_ids: what to continue.
        sampling: how.
        vocab_size: ids are below this.
        max_context: most ids of prompt and samples together.

    Raises:
        ContextOverflow: the prompt leaves no room for a single id.
        ValueError: the prompt or the sampling makes no sense.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        vocab_size: int,
        max_context: int,
    ) -> None:
        check_room(prompt_ids, max_context)
        _check_sampling(sampling)
        self.prompt: Ids = np.asarray(prompt_ids, dtype=np.int64)
        # An id outside of the vocabulary would otherwise bring the whole engine down.
        if self.prompt.min() < 0 or self.prompt.max() >= vocab_size:
            raise ValueError(f"a prompt id is not in the vocabulary of {vocab_size} ids")
        self.ids: list[int] = self.prompt.tolist()
        self.sampling = sampling
        self.future: Future[Generation] = Future()
        self._stop_ids = frozenset(sampling.stop_token_ids)
        self._max_length = min(len(self.ids) + sampling.max_new_tokens, max_context)
        # One uniform number per id keeps a seed's samples independent of the batch.
        self._random = random.Random(sampling.seed)
        self._segments: list[Segment] = []
        self._logprobs: list[float] = []

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits any more."""
        return self.future.cancelled()

    def draw(self) -> float:
        """The next number of this request's own stream, in [0, 1)."""
        return self._random.random()

    def append(self, sampled_id: int, logprob: float) -> FinishReason | None:
        """Take the next sampled id; says why it was the last one, if it was."""
        self.ids.append(sampled_id)
        self._logprobs.append(logprob)
        if sampled_id in self._stop_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.ids) >= self._max_length else None

    def close_segment(self, policy_version: int) -> None:
        """End the current segment, sampled under ``policy_version``; none when it is empty."""
        if not self._logprobs:
            return
        ids = tuple(self.ids[-len(self._logprobs) :])
        logprobs = tuple(self._logprobs)
        self._segments.append(Segment(ids=ids, logprobs=logprobs, policy_version=policy_version))
        self._logprobs = []

    def finish(self, reason: FinishReason, policy_version: int) -> None:
        """Answer who waits."""
        self.close_segment(policy_version)
        generation = Generation(segments=tuple(self._segments), finish_reason=reason)
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(generation)


def check_room(prompt_ids: Sequence[int], max_context: int) -> None:
    """Raise unless there is a prompt and room for one id after it.

    Raises:
        ContextOverflow: there is no room.
        ValueError: the prompt is empty.
    """
    if len(prompt_ids) == 0:
        raise ValueError("the prompt is empty")
    if len(prompt_ids) >= max_context:
        raise ContextOverflow(
            f"a prompt of {len(prompt_ids)} ids leaves no room in a context of {max_context}"
        )


def _check_sampling(sampling: SamplingParams) -> None:
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        raise ValueError(f"temperature {sampling.temperature} is not a number ≥ 0")
    if not 0 < sampling.top_p <= 1:
        raise ValueError(f"top_p {sampling.top_p} is not in (0, 1]")
    if sampling.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens {sampling.max_new_tokens} is below 1")
