"""What samples tokens: ids in, ids and logprobs out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from palestra.records import Generation, SamplingParams


class Engine(Protocol):
    """A token-in-token-out sampler under versioned weights."""

    @property
    def version(self) -> int:
        """Version of the weights that serve now."""
        ...

    @property
    def max_context(self) -> int:
        """Most ids that a prompt and its samples may have together."""
        ...

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> Generation:
        """Sample one continuation of ``prompt_ids``.

        Cancelling the call frees its place in the batch. If weights are published
        meanwhile, what was sampled stays as a segment and sampling goes on under
        the new version as another segment.

        Raises:
            ContextOverflow: ``prompt_ids`` leave no room for a single id.
            EngineError: the engine failed.
        """
        ...

    async def publish(self, weights: Path, version: int) -> None:
        """Serve the weights of a Hugging Face folder as ``version``, which must rise."""
        ...

    async def health(self) -> None:
        """Return when the engine can serve.

        Raises:
            EngineError: it cannot.
        """
        ...
