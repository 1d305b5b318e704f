"""What any endpoint asks of the gateway, in one shape: a conversation and how to continue it."""

from __future__ import annotations

from dataclasses import dataclass, field

from palestra.policy.gateway.history import Conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """How a client wants to be sampled; ``None`` (and an empty bias) leaves it to others.

    Values that change nothing (``top_k`` of -1, a penalty of 0) are ``None`` here.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    max_new_tokens: int | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Whether a request says of itself that it was sent before.

    ``key`` is its ``Idempotency-Key``; ``repeated`` is set where the client counts
    its retries (``X-Stainless-Retry-Count``) and this is not its first.
    """

    key: str | None = None
    repeated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request for an answer."""

    conversation: Conversation
    wishes: Wishes = field(default_factory=Wishes)
    stop_strings: tuple[str, ...] = ()
    attempt: Attempt = field(default_factory=Attempt)
