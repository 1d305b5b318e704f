"""An engine whose policy is a function of the prompt's text: a fake for tests, and a teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from palestra.errors import ContextOverflow, EngineError
from palestra.records import FinishReason, Generation, SamplingParams, Segment


class ScriptedEngine:
    """Answers what ``reply`` says, with log-probability 0: the script is certain.

    Sampling's temperature, nucleus and seed change nothing; its
    ``max_new_tokens`` and ``max_context`` cut the answer.

    Args:
        encode: text to ids, without special tokens around it.
        decode: ids to text, special tokens included.
        reply: the whole prompt's text to the assistant's text.
        stop_id: ends every answer that is not cut.
        version: of the policy, until another one is published.
        max_context: most ids of prompt and answer together.
    """

    def __init__(
        self,
        encode: Callable[[str], Sequence[int]],
        decode: Callable[[Sequence[int]], str],
        reply: Callable[[str], str],
        *,
        stop_id: int,
        version: int = 0,
        max_context: int = 1 << 20,
    ) -> None:
        self._encode = encode
        self._decode = decode
        self._reply = reply
        self._stop_id = stop_id
        self._version = version
        self._max_context = max_context

    @property
    def version(self) -> int:
        """The version published last."""
        return self._version

    @property
    def max_context(self) -> int:
        """Most ids that a prompt and its answer may have together."""
        return self._max_context

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> Generation:
        """Answer with the script's ids and the stop id.

        Raises:
            ContextOverflow: ``prompt_ids`` leave no room for a single id.
        """
        room = min(self._max_context - len(prompt_ids), sampling.max_new_tokens)
        if len(prompt_ids) >= self._max_context:
            raise ContextOverflow(
                f"a prompt of {len(prompt_ids)} ids leaves no room "
                f"in a context of {self._max_context}"
            )
        answer = (*self._encode(self._reply(self._decode(prompt_ids))), self._stop_id)
        ids = answer[:room]
        segment = Segment(ids=ids, logprobs=(0.0,) * len(ids), policy_version=self._version)
        reason = FinishReason.STOP if len(answer) <= room else FinishReason.LENGTH
        return Generation(segments=(segment,), finish_reason=reason)

    async def publish(self, weights: Path, version: int) -> None:
        """Count up; a script has no weights.

        Raises:
            EngineError: ``version`` does not rise.
        """
        if version <= self._version:
            raise EngineError(f"version {version} does not rise above {self._version}")
        self._version = version

    async def health(self) -> None:
        """Return: a script can always serve."""
