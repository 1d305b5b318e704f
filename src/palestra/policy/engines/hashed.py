"""An engine that samples a hash of its weights: a fake that shows which weights were at work.

Each id and its logprob follow from the bytes of the weights, the ids before it and nothing
else, so anybody who has the folder can tell afterwards whether a sample is of it.
"""

from __future__ import annotations

import asyncio
import hashlib
from array import array
from collections.abc import Sequence
from pathlib import Path

from palestra.errors import ContextOverflow, EngineError
from palestra.records import FinishReason, Generation, SamplingParams, Segment

NUM_IDS = 256
STOP_SHARE = 48


def digest_of(folder: Path) -> bytes:
    """What a folder's weights are known by.

    Raises:
        EngineError: there are none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise EngineError(f"there are no weights in {folder}")
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(file.read_bytes())
    return digest.digest()


def hashed_id(digest: bytes, before: Sequence[int], stop_ids: Sequence[int]) -> tuple[int, float]:
    """The id after the ids ``before``, and its logprob; one in 48 is a stop id."""
    said = hashlib.blake2b(array("q", before[-32:]).tobytes(), key=digest, digest_size=8)
    said.update(len(before).to_bytes(8, "little"))
    number = int.from_bytes(said.digest(), "little")
    stops = bool(stop_ids) and number % STOP_SHARE == 0
    return stop_ids[0] if stops else number // 64 % NUM_IDS, -(number >> 44) / 2**20


class HashedEngine:
    """Samples what :func:`hashed_id` says, whatever the temperature.

    Args:
        folder: Hugging Face folder of the starting weights, of which only bytes are read.
        max_context: most ids of a prompt and its samples.
        version: of the starting weights.

    Raises:
        EngineError: there are no weights in ``folder``.
    """

    def __init__(self, folder: Path, *, max_context: int = 4096, version: int = 0) -> None:
        self._digest = digest_of(folder)
        self._max_context = max_context
        self._version = version

    @property
    def version(self) -> int:
        """Version of the weights that serve now."""
        return self._version

    @property
    def max_context(self) -> int:
        """Most ids that a prompt and its samples may have together."""
        return self._max_context

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> Generation:
        """Sample until a stop id or the limit.

        Raises:
            ContextOverflow: ``prompt_ids`` leave no room for a single id.
        """
        ids = list(prompt_ids)
        room = min(self._max_context - len(ids), sampling.max_new_tokens)
        if room < 1:
            raise ContextOverflow(f"a prompt of {len(ids)} ids leaves no room")
        logprobs: list[float] = []
        reason = FinishReason.LENGTH
        while len(logprobs) < room:
            token, logprob = hashed_id(self._digest, ids, sampling.stop_token_ids)
            ids.append(token)
            logprobs.append(logprob)
            if token in sampling.stop_token_ids:
                reason = FinishReason.STOP
                break
        segment = Segment(
            ids=tuple(ids[len(prompt_ids) :]),
            logprobs=tuple(logprobs),
            policy_version=self._version,
        )
        return Generation(segments=(segment,), finish_reason=reason)

    async def publish(self, weights: Path, version: int) -> None:
        """Sample by the weights of another folder.

        Raises:
            EngineError: ``version`` does not rise, or there are no weights.
        """
        if version <= self._version:
            raise EngineError(f"version {version} does not rise above {self._version}")
        self._digest = await asyncio.to_thread(digest_of, weights)
        self._version = version

    async def health(self) -> None:
        """Return: it can always sample."""
