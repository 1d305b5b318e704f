"""The hook that turns one of Miles' samples into an episode and back."""

from __future__ import annotations

import asyncio
import logging
import uuid
from argparse import Namespace
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any

from miles.utils.types import Sample

from palestra.backends.miles.filling import abort, fill, row_of
from palestra.backends.miles.service import PolicyFront, RolloutService, service_of
from palestra.backends.miles.state import MilesState, miles_state
from palestra.backends.miles.tokens import SampleTokens, tokens_of_messages, tokens_of_trace
from palestra.errors import ConfigError, EnvironmentUnavailable, InfraError, TaskError
from palestra.learning.rollouts.environment_client import Answer
from palestra.policy.gateway import SessionLimits, UnknownSession
from palestra.records import Outcome

logger = logging.getLogger(__name__)

_LOOK_FOR_ABORT_S = 0.2
_FIRST_RETRY_S = 5.0
_LAST_RETRY_S = 60.0


class RolloutAborted(Exception):
    """Miles has enough samples, and waits for the others only to end."""


async def generate(args: Namespace, sample: Sample, sampling_params: dict[str, Any]) -> Sample:
    """Run an episode for ``sample`` and write what came out of it into the sample.

    The row in ``sample.metadata`` goes to the environment server with the URL of a session
    of the gateway. ``tokens`` and ``rollout_log_probs`` are the ids and logprobs that the
    engine answered, bit for bit; ``loss_mask`` is 1 exactly on sampled ids. Trouble of the
    infrastructure is tried again and then makes the sample ABORTED, as does the end of
    Miles' rollout.

    Args:
        args: Miles' arguments.
        sample: one row of prompt data; is changed and returned.
        sampling_params: under SGLang's names.

    Raises:
        ConfigError: an argument, an address or a token is wrong: no sample can succeed.
        EnvironmentUnavailable: there is no environment server to begin with.
    """
    service = await service_of(args, miles_state(args))
    try:
        await _until_aborted(_roll_out(service, sample, sampling_params), service.state)
    except RolloutAborted:
        abort(sample, "the rollout ended")
    return sample


async def _roll_out(
    service: RolloutService, sample: Sample, sampling_params: Mapping[str, Any]
) -> None:
    row = row_of(sample)
    try:
        answer, tokens = await _tried(service, row, sampling_params)
    except (InfraError, TaskError) as error:
        logger.warning("palestra: no rollout of %s: %s", row.get("instance_id"), error)
        sample.metadata |= {
            "outcome": Outcome.INFRA_ERROR.value,
            "exit_status": type(error).__name__,
        }
        abort(sample, str(error))
        service.luck.failed(error)
        return
    fill(
        sample,
        answer,
        tokens,
        tokenizer=service.state.tokenizer,
        mask_truncated=service.settings.truncated == "mask",
    )
    if answer.episode.outcome is Outcome.INFRA_ERROR:
        service.luck.failed(EnvironmentUnavailable(answer.episode.error or "an infra error"))
    else:
        service.luck.succeeded()


async def _tried(
    service: RolloutService, row: Mapping[str, Any], sampling_params: Mapping[str, Any]
) -> tuple[Answer, SampleTokens | None]:
    """An episode, run again and in a new session while it is an infra error."""
    pause_s = _FIRST_RETRY_S
    for left in range(service.settings.infra_retries, -1, -1):
        try:
            answer, tokens = await _once(service, row, sampling_params)
            if answer.episode.outcome is not Outcome.INFRA_ERROR or not left:
                return answer, tokens
        except InfraError:
            if not left:
                raise
        await asyncio.sleep(pause_s)
        pause_s = min(_LAST_RETRY_S, 4 * pause_s)
    raise AssertionError("the last try returns or raises")


async def _once(
    service: RolloutService, row: Mapping[str, Any], sampling_params: Mapping[str, Any]
) -> tuple[Answer, SampleTokens | None]:
    if service.front is not None:
        return await _in_session(service, service.front, row, sampling_params)
    answer = await service.environment.run_row(
        row,
        sglang_url=service.router_url,
        sampling={k: v for k, v in sampling_params.items() if v is not None},
        idempotency_key=uuid.uuid4().hex,
    )
    return answer, tokens_of_messages(answer.body.get("messages") or (), service.state.tokenizer)


async def _in_session(
    service: RolloutService,
    front: PolicyFront,
    row: Mapping[str, Any],
    sampling_params: Mapping[str, Any],
) -> tuple[Answer, SampleTokens | None]:
    ledger = front.gateway.ledger
    session_id = ledger.open(_limits(sampling_params)).session_id
    try:
        answer = await service.environment.run_row(
            row,
            sglang_url=f"{front.url}/s/{session_id}/v1",
            sampling=_what_the_agent_is_told(sampling_params),
            idempotency_key=uuid.uuid4().hex,
        )
        return answer, tokens_of_trace(ledger.take(session_id))
    finally:
        with suppress(UnknownSession):  # it was taken
            ledger.drop(session_id)


def _limits(sampling_params: Mapping[str, Any]) -> SessionLimits:
    top_k = sampling_params.get("top_k")
    if top_k not in (None, -1, 0):
        raise ConfigError(
            f"top_k is {top_k}, and the gateway samples from all tokens",
            hint="--rollout-top-k -1, or for greedy evaluation --eval-temperature 0",
        )
    return SessionLimits(
        temperature=sampling_params.get("temperature"),
        top_p=sampling_params.get("top_p"),
        max_new_tokens=sampling_params.get("max_new_tokens"),
        seed=sampling_params.get("sampling_seed"),
    )


def _what_the_agent_is_told(sampling_params: Mapping[str, Any]) -> dict[str, Any]:
    """The session decides; but an environment that knows a limit can plan with it."""
    names = ("temperature", "top_p", "max_new_tokens", "stop")
    return {name: sampling_params[name] for name in names if sampling_params.get(name) is not None}


async def _until_aborted(work: Coroutine[Any, Any, None], state: MilesState) -> None:
    """Await ``work``; when Miles ends its rollout meanwhile, cancel it and its episode.

    Raises:
        RolloutAborted: Miles did.
    """
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            if state.aborted:
                raise RolloutAborted
            await asyncio.wait({task}, timeout=_LOOK_FOR_ABORT_S)
        return task.result()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task
