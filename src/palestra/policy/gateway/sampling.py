"""Who decides how a turn is sampled: the session, then the agent, then the defaults.

Options under which the logprobs no longer describe what was drawn from belong to
evaluation. In a session of training, ``top_p`` is honoured and the turn flagged
(agents send it as a matter of course); the others are refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, TypeVar

from palestra.policy.engines.protocol import Engine
from palestra.policy.gateway.asks import Wishes
from palestra.policy.gateway.requests import BadRequest
from palestra.policy.gateway.session import SessionLimits
from palestra.records import SamplingParams

Value = TypeVar("Value")

_LOSSY = (
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "logit_bias",
)


class KnowsMoreOptions(Protocol):
    """An engine that honours more of :class:`SamplingParams` than every engine must."""

    @property
    def sampling_options(self) -> frozenset[str]:
        """Names of fields: ``stop``, ``top_k``, ``min_p``, the penalties, ``logit_bias``."""
        ...


def decide(
    wishes: Wishes,
    stop_strings: tuple[str, ...],
    *,
    limits: SessionLimits,
    defaults: SamplingParams,
    engine: Engine,
) -> SamplingParams:
    """How to sample, but for the room that is left, the stop ids and a session's seed.

    Raises:
        BadRequest: an option spoils the logprobs of a training session, or the engine
            does not know it.
    """
    known: frozenset[str] = getattr(engine, "sampling_options", frozenset())
    asked = {name: value for name in _LOSSY if (value := getattr(wishes, name))}
    for name in asked:
        _allow(name, asked[name], known, training=limits.purpose != "evaluation")
    return replace(
        defaults,
        temperature=_first(limits.temperature, wishes.temperature, defaults.temperature),
        top_p=_first(limits.top_p, wishes.top_p, defaults.top_p),
        max_new_tokens=_first(
            limits.max_new_tokens, wishes.max_new_tokens, defaults.max_new_tokens
        ),
        seed=wishes.seed,
        # Where the engine cannot stop at a text, the answer is cut there and the ids are not.
        stop=stop_strings if "stop" in known else (),
        **asked,
    )


def _allow(name: str, value: object, known: frozenset[str], *, training: bool) -> None:
    if training:
        raise BadRequest(
            f"{name}={value!r} would spoil the logprobs that this session trains on",
            field=name,
            status=400,
            hint='open the session with "purpose": "evaluation", or leave the option out',
        )
    if name not in known:
        raise BadRequest(
            f"{name}={value!r} is not supported by this engine", field=name, status=400
        )


def _first(*values: Value | None) -> Value:
    return next(value for value in values if value is not None)
