"""The hook for a Miles that keeps the tokens itself, in its own session server."""

from __future__ import annotations

import logging
import os
import uuid
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from palestra.backends.miles.filling import RESULT_KEYS, result_of
from palestra.backends.miles.service import find_environment
from palestra.backends.miles.settings import HookSettings
from palestra.errors import InfraError
from palestra.records import Outcome
from palestra.tasks.miles import from_prompt_data

logger = logging.getLogger(__name__)

_NOT_OF_THE_ROW = frozenset(
    (*RESULT_KEYS, "max_seq_len", "session_server_id", "session_server_instance_id")
)


async def agent(
    base_url: str,
    prompt: Any,
    request_kwargs: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """Run one episode whose policy is a session of Miles at ``base_url``.

    Miles makes the sample from what its session saw. What is returned goes into the sample's
    metadata, where :func:`~palestra.backends.miles.reward_func` finds the reward; trouble of
    the infrastructure has the reward ``None``, and the group filter drops its group. An
    episode is not tried again: its session already holds the tokens of the first try.

    Args:
        base_url: of the session, without ``/v1``.
        prompt: of the row; used where the row itself has no problem statement.
        request_kwargs: sampling, under OpenAI's names.
        metadata: the row, and what Miles adds to it.
        kwargs: what later versions add; not used.

    Raises:
        ConfigError: an address or a token is wrong.
        TaskError: the environment server cannot use the row.
    """
    settings = HookSettings.read(Namespace(), os.environ)
    row = {k: v for k, v in (metadata or {}).items() if k not in _NOT_OF_THE_ROW}
    sampling = {k: v for k, v in (request_kwargs or {}).items() if v is not None}
    if "max_tokens" in sampling:
        sampling["max_new_tokens"] = sampling.pop("max_tokens")
    try:
        async with await find_environment(settings) as environment:
            answer = await environment.run_row(
                from_prompt_data({"prompt": prompt, "metadata": row}),
                sglang_url=f"{base_url.rstrip('/')}/v1",
                sampling=sampling,
                idempotency_key=uuid.uuid4().hex,
            )
    except InfraError as error:
        logger.warning("palestra: no rollout of %s: %s", row.get("instance_id"), error)
        return {
            "reward": None,
            "outcome": Outcome.INFRA_ERROR.value,
            "exit_status": type(error).__name__,
            "error": str(error),
        }
    return result_of(answer)
