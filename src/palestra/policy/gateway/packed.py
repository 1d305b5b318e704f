"""The turns of one session in two flat arrays: 4 bytes an id, 8 more where it was sampled.

A tuple of Python's own integers and floats takes some 36 and 32 bytes for the
same. The arrays also are what is written to a disk and read back.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from palestra.records import FinishReason, Segment, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedTurn:
    """All of a turn but its ids and logprobs, and where those lie.

    ``segments`` has, for each, how many ids it holds and the version that sampled them.
    """

    parent: int | None
    first_id: int
    first_logprob: int
    num_context: int
    segments: tuple[tuple[int, int], ...]
    finish_reason: str
    temperature: float
    duration_s: float
    began_s: float | None
    cached_tokens: int | None
    distortions: tuple[str, ...]

    @property
    def num_ids(self) -> int:
        """Ids that the turn added: its context and its samples."""
        return self.num_context + sum(num_ids for num_ids, _ in self.segments)


class PackedTurns:
    """Grows by one turn at a time; turns come out as the records that went in."""

    def __init__(
        self,
        turns: list[PackedTurn] | None = None,
        ids: array[int] | None = None,
        logprobs: array[float] | None = None,
    ) -> None:
        self.packed = turns if turns is not None else []
        self.ids: array[int] = ids if ids is not None else array("i")
        # Doubles: what is read back must be what the engine said, bit for bit.
        self.logprobs: array[float] = logprobs if logprobs is not None else array("d")

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def num_bytes(self) -> int:
        """About what the turns take in memory."""
        arrays = len(self.ids) * self.ids.itemsize + len(self.logprobs) * self.logprobs.itemsize
        return arrays + 512 * len(self.packed)

    def append(self, turn: Turn) -> None:
        """Add a turn behind the others."""
        self.packed.append(
            PackedTurn(
                parent=turn.parent,
                first_id=len(self.ids),
                first_logprob=len(self.logprobs),
                num_context=len(turn.context_ids),
                segments=tuple((len(s.ids), s.policy_version) for s in turn.segments),
                finish_reason=turn.finish_reason.value,
                temperature=turn.temperature,
                duration_s=turn.duration_s,
                began_s=turn.began_s,
                cached_tokens=turn.cached_tokens,
                distortions=turn.distortions,
            )
        )
        self.ids.extend(turn.context_ids)
        for segment in turn.segments:
            self.ids.extend(segment.ids)
            self.logprobs.extend(segment.logprobs)

    def turn(self, index: int) -> Turn:
        """A turn as it went in."""
        packed = self.packed[index]
        at, at_logprob = packed.first_id + packed.num_context, packed.first_logprob
        segments = []
        for num_ids, version in packed.segments:
            segments.append(
                Segment(
                    ids=tuple(self.ids[at : at + num_ids]),
                    logprobs=tuple(self.logprobs[at_logprob : at_logprob + num_ids]),
                    policy_version=version,
                )
            )
            at += num_ids
            at_logprob += num_ids
        return Turn(
            index=index,
            parent=packed.parent,
            context_ids=tuple(self.ids[packed.first_id : packed.first_id + packed.num_context]),
            segments=tuple(segments),
            finish_reason=FinishReason(packed.finish_reason),
            temperature=packed.temperature,
            duration_s=packed.duration_s,
            began_s=packed.began_s,
            cached_tokens=packed.cached_tokens,
            distortions=packed.distortions,
        )

    def path(self, index: int) -> tuple[list[int], list[int]]:
        """The prompt of a turn and what it sampled."""
        chain = [self.packed[index]]
        while (parent := chain[-1].parent) is not None:
            chain.append(self.packed[parent])
        prompt: array[int] = array("i")
        for packed in reversed(chain[1:]):
            prompt += self.ids[packed.first_id : packed.first_id + packed.num_ids]
        last = chain[0]
        start = last.first_id + last.num_context
        prompt += self.ids[last.first_id : start]
        return prompt.tolist(), self.ids[start : last.first_id + last.num_ids].tolist()
