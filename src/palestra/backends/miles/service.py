"""What outlives one call of a hook: the environment's client, and the gateway in front of SGLang.

Hooks are bare functions that Miles calls by name, all of a process on one event loop; so
what they share hangs on that loop, is opened by the first call, and ends with the process
or with :func:`close_service`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from palestra.addresses import gateway_host
from palestra.backends.miles.rendering import find_renderer
from palestra.backends.miles.settings import HookSettings
from palestra.backends.miles.state import MilesState
from palestra.config import GatewaySection
from palestra.errors import ConfigError, EnvironmentUnavailable, PalestraError
from palestra.learning.rollouts.environment_client import EnvironmentClient
from palestra.policy.engines.sglang import SGLangEngine
from palestra.policy.gateway import Gateway, running_gateway
from palestra.policy.rendering import Renderer, load_renderer

logger = logging.getLogger(__name__)

WELL_KNOWN_URLS = ("http://127.0.0.1:11000", "http://swe_env:11000")
"""Where an environment server is looked for that nobody named: here, and on compose's network."""

MODEL_NAME = "policy"
MAX_FAILURES = 16
MAX_FAILING_S = 600.0
_ASK_AGAIN_S = 2.0


class Luck:
    """Stops a run in which nothing succeeds any more, which would else go on for ever."""

    def __init__(self) -> None:
        self._num_failures = 0
        self._since_s = time.monotonic()

    def succeeded(self) -> None:
        """A rollout came to its end."""
        self._num_failures = 0
        self._since_s = time.monotonic()

    def failed(self, error: PalestraError) -> None:
        """A rollout was given up.

        Raises:
            PalestraError: ``error``, when too many were, over too long a time.
        """
        self._num_failures += 1
        unlucky_s = time.monotonic() - self._since_s
        if self._num_failures >= MAX_FAILURES and unlucky_s >= MAX_FAILING_S:
            raise type(error)(
                f"{self._num_failures} rollouts in a row failed, for {unlucky_s:.0f} s; the last: "
                f"{error}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFront:
    """The gateway that runs here, and the URL under which the environment reaches it."""

    gateway: Gateway
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutService:
    """What every rollout of this process uses.

    Attributes:
        settings: of the hooks.
        state: of Miles.
        environment: where episodes run.
        front: the gateway; ``None``: the agents speak to SGLang's router themselves.
        router_url: OpenAI base URL of that router.
        stack: closes all of it.
        luck: counts rollouts that failed.
    """

    settings: HookSettings
    state: MilesState
    environment: EnvironmentClient
    front: PolicyFront | None
    router_url: str
    stack: AsyncExitStack
    luck: Luck = field(default_factory=Luck)


# The one thing that is kept outside of any object: nothing is handed from hook to hook.
_OPEN: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Future[RolloutService]] = (
    WeakKeyDictionary()
)


async def service_of(args: Namespace, state: MilesState) -> RolloutService:
    """The service of the running loop, opened by whoever comes first.

    Raises:
        ConfigError: an argument, an address or a token is wrong.
        EnvironmentUnavailable: no environment server can be reached, or it cannot reach us.
    """
    loop = asyncio.get_running_loop()
    opening = _OPEN.get(loop)
    if opening is None or (opening.done() and _failed(opening)):
        opening = _OPEN[loop] = asyncio.ensure_future(open_service(args, state))
    # One caller that is cancelled must not close it for the others.
    return await asyncio.shield(opening)


async def close_service() -> None:
    """End the service of the running loop, if there is one."""
    opening = _OPEN.pop(asyncio.get_running_loop(), None)
    if opening is not None:
        if not opening.done():
            opening.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await (await opening).stack.aclose()


async def open_service(args: Namespace, state: MilesState) -> RolloutService:
    """Find the environment, start the gateway, and see that each can reach the other.

    Raises:
        ConfigError: an argument, an address or a token is wrong.
        EnvironmentUnavailable: no environment server can be reached, or it cannot reach us.
    """
    settings = HookSettings.read(args, os.environ)
    router_url = f"http://{args.sglang_router_ip}:{args.sglang_router_port}"
    async with AsyncExitStack() as stack:
        environment = await stack.enter_async_context(await find_environment(settings))
        renderer = _renderer(args, state, settings)
        front: PolicyFront | None = None
        if renderer is not None:
            front = await _front(
                stack, args, state, settings, renderer, router_url, environment.address
            )
        policy_url = f"{front.url if front else router_url}/v1"
        await environment.reach(policy_url)
        logger.info(
            "palestra: episodes run on %s, which reaches the policy at %s",
            environment.address,
            policy_url,
        )
        return RolloutService(
            settings=settings,
            state=state,
            environment=environment,
            front=front,
            router_url=f"{router_url}/v1",
            stack=stack.pop_all(),
        )


async def find_environment(settings: HookSettings) -> EnvironmentClient:
    """A client of the environment server that answers first, in the order of the candidates.

    Raises:
        ConfigError: the address is none, or the server refuses the token.
        EnvironmentUnavailable: none answered within ``start_timeout_s``; names them all.
    """
    named = settings.environment_url
    candidates = (named,) if named else WELL_KNOWN_URLS
    until_s = time.monotonic() + settings.start_timeout_s
    while True:
        found, errors = await _first_healthy(candidates, settings)
        if found is not None:
            return found
        if time.monotonic() >= until_s:
            raise EnvironmentUnavailable(
                "; ".join(errors),
                hint="start one with palestra serve, and name it in $SWE_AGENT_GYM_URL",
            )
        await asyncio.sleep(_ASK_AGAIN_S)


async def _first_healthy(
    candidates: Sequence[str], settings: HookSettings
) -> tuple[EnvironmentClient | None, list[str]]:
    errors = []
    for url in candidates:
        client = EnvironmentClient(
            url,
            settings.token,
            timeout_s=settings.environment_timeout_s,
            outage_s=settings.outage_s,
            say=lambda line: logger.warning("palestra: %s", line),
        )
        try:
            await client.health()
        except EnvironmentUnavailable as error:
            errors.append(str(error))
            await client.aclose()
        except BaseException:
            await client.aclose()
            raise
        else:
            return client, errors
    return None, errors


def _renderer(args: Namespace, state: MilesState, settings: HookSettings) -> Renderer | None:
    if settings.renderer is not None:
        return load_renderer(settings.renderer, state.tokenizer)
    found = find_renderer(state.tokenizer, model_type=_model_config(args).get("model_type"))
    if found is not None:
        return found
    if getattr(args, "use_tis", False):
        raise ConfigError(
            f"no renderer writes as the chat template of {args.hf_checkpoint} does, so there is "
            "no gateway and there are no rollout logprobs, which --use-tis needs",
            hint="name one in palestra_renderer, or leave --use-tis out",
        )
    logger.warning(
        "palestra: NO GATEWAY. No renderer writes as the chat template of %s does, so agents "
        "speak to SGLang's router themselves and their messages are tokenised anew: trained ids "
        "may differ from the sampled ones, and rollout_log_probs are absent. Name a renderer in "
        "palestra_renderer to train on what was sampled.",
        args.hf_checkpoint,
    )
    return None


async def _front(
    stack: AsyncExitStack,
    args: Namespace,
    state: MilesState,
    settings: HookSettings,
    renderer: Renderer,
    router_url: str,
    environment_url: str,
) -> PolicyFront:
    engine = await stack.enter_async_context(
        SGLangEngine(router_url, max_context=_max_context(args, settings))
    )
    gateway = Gateway(engine, renderer, state.tokenizer, model_name=MODEL_NAME)
    section = GatewaySection(
        host=settings.gateway_host,
        port=settings.gateway_port,
        public_url=settings.gateway_public_url,
    )
    # Resolving a name may take as long as a name server likes.
    host = await asyncio.to_thread(gateway_host, section, environment_url)
    url = await stack.enter_async_context(running_gateway(gateway, host=host, port=section.port))
    return PolicyFront(gateway=gateway, url=(section.public_url or url).rstrip("/"))


def _max_context(args: Namespace, settings: HookSettings) -> int:
    known = (
        settings.max_context,
        getattr(args, "rollout_max_context_len", None),
        getattr(args, "sglang_context_length", None),
        _model_config(args).get("max_position_embeddings"),
    )
    for length in known:
        if length:
            return int(length)
    raise ConfigError(
        f"nothing says how long a conversation with {args.hf_checkpoint} may be",
        hint="set palestra_max_context or --rollout-max-context-len",
    )


def _model_config(args: Namespace) -> dict[str, Any]:
    from transformers import PretrainedConfig

    try:
        config, _ = PretrainedConfig.get_config_dict(args.hf_checkpoint)
    except (OSError, ValueError):
        return {}
    text = config.get("text_config")
    return {**config, **(text if isinstance(text, dict) else {})}


def _failed(opening: asyncio.Future[RolloutService]) -> bool:
    return opening.cancelled() or opening.exception() is not None
