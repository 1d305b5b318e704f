"""What an engine's server answers, and the connection to one.

A :class:`Server` is one engine process as seen over HTTP. It samples once and retries
nothing; what several of them are together is a :class:`~palestra.policy.engines.fleet.Fleet`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import httpx
import orjson

from palestra.errors import ConfigError, ContextOverflow, EngineError
from palestra.records import FinishReason, Generation, SamplingParams, Segment

CONNECT_TIMEOUT_S = 10.0

_PASSING = {502, 503, 504}
"""What a server answers that is busy, starting or stopping, or a router whose server is gone."""


Listener = Callable[[httpx.Response], Awaitable[None]]
"""Told of each response as it comes, its body unread and its request with it."""


class ServerGone(EngineError):
    """The server cannot be reached, or its connection broke: it may have died."""


class ServerBusy(EngineError):
    """The server is there and cannot answer now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one request to a server sampled.

    Attributes:
        ids: that were sampled.
        logprobs: one per id, natural log, at the sampling temperature.
        end: ``abort`` when the server was told to stop; sampling may go on from here.
        stamp: what the server calls the weights that sampled all of it; ``None``: nothing.
        num_cached: prompt ids whose keys and values were there already, where it says.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    end: Literal["stop", "length", "abort"]
    stamp: str | None
    num_cached: int | None = None


class Server(Protocol):
    """One engine process over HTTP."""

    @property
    def url(self) -> str:
        """Where it is, for people."""
        ...

    async def sample(
        self, ids: Sequence[int], sampling: SamplingParams, *, max_new_tokens: int
    ) -> Sample:
        """Sample one continuation of ``ids``; cancelling ends it there too.

        Raises:
            ContextOverflow: the server says that ``ids`` are too many.
            ServerGone: it may have died.
            ServerBusy: it cannot answer now.
            EngineError: it refuses, or answers nonsense.
        """
        ...

    async def load(self, weights: Path, stamp: str) -> None:
        """End what is in flight as ``abort``, then serve the folder's weights under ``stamp``.

        No answer holds ids of both the old weights and the new ones. The folder's path is
        absolute.

        Raises:
            EngineError: it failed; which weights serve now is unknown.
        """
        ...

    async def health(self) -> None:
        """Return when the server can serve.

        Raises:
            EngineError: it cannot.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


class ServerHttp:
    """Asks one server; whatever goes wrong names it.

    Args:
        base_url: ``http://HOST:PORT``.
        timeout_s: seconds that one answer may take.
        listener: hears what comes over the wire.
    """

    def __init__(
        self, base_url: str, *, timeout_s: float, listener: Listener | None = None
    ) -> None:
        self.url = base_url.rstrip("/")
        self._timeout_s = timeout_s
        try:
            self._http = httpx.AsyncClient(
                base_url=self.url,
                timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s)),
                # The gateway bounds what is in flight, and the engine queues it.
                # Servers hang up on what idles for 5 s, and a request that crosses that is lost.
                limits=httpx.Limits(
                    max_connections=None, max_keepalive_connections=64, keepalive_expiry=3.0
                ),
                # A proxy for the internet has no business between us and an engine next door.
                trust_env=False,
                event_hooks={"response": [listener] if listener else []},
            )
        except httpx.InvalidURL as error:
            raise ConfigError(f"the engine's address {base_url} is no URL: {error}") from None

    async def post(
        self, path: str, body: Mapping[str, Any], *, timeout_s: float | None = None
    ) -> httpx.Response:
        """The answer, of any status.

        Raises:
            ServerGone: there is none.
            EngineError: it took too long.
        """
        return await self._ask("POST", path, body, timeout_s or self._timeout_s)

    async def get(self, path: str, *, timeout_s: float) -> httpx.Response:
        """The answer, of any status; raises as :meth:`post` does."""
        return await self._ask("GET", path, None, timeout_s)

    async def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float
    ) -> httpx.Response:
        timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))
        try:
            return await self._http.request(
                method,
                path,
                content=None if body is None else orjson.dumps(body),
                headers={"Content-Type": "application/json"},
                timeout=timeout,
            )
        except httpx.ReadTimeout as error:
            raise self.failure(f"did not answer in {timeout_s:g} s") from error
        except httpx.HTTPError as error:
            said = str(error) or type(error).__name__
            raise self.failure(f"cannot be reached: {said}", kind=ServerGone) from error

    def read(self, response: httpx.Response) -> Mapping[str, Any]:
        """The object that a good answer holds.

        Raises:
            ServerBusy: the answer says so.
            EngineError: it is a refusal, or no object.
        """
        if not response.is_success:
            kind = ServerBusy if response.status_code in _PASSING else EngineError
            said = complaint(response)
            raise self.failure(f"answered {response.status_code}: {said}", kind=kind)
        try:
            answer = orjson.loads(response.content)
        except orjson.JSONDecodeError as error:
            raise self.failure("answered something that is not JSON") from error
        if not isinstance(answer, dict):
            raise self.failure(f"answered a {type(answer).__name__} where an object belongs")
        return answer

    async def health(self, path: str, *, timeout_s: float) -> None:
        """Return when the server says that it can work.

        Raises:
            EngineError: it does not.
        """
        response = await self.get(path, timeout_s=timeout_s)
        if not response.is_success:
            raise self.failure(f"answered {response.status_code} when asked for its health")

    def failure(
        self, what: str, *, hint: str | None = None, kind: type[EngineError] = EngineError
    ) -> EngineError:
        """An error that names the server."""
        return kind(f"the engine at {self.url} {what}", hint=hint)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()


OPTIONS = frozenset(
    {
        "top_k",
        "min_p",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "logit_bias",
    }
)
"""Options of sampling that servers know under the same names, beside what every engine knows."""


def more_options(sampling: SamplingParams) -> dict[str, Any]:
    """Those of :data:`OPTIONS` that are asked for, as a server reads them."""
    asked = {name: value for name in sorted(OPTIONS) if (value := getattr(sampling, name))}
    if sampling.logit_bias:
        asked["logit_bias"] = {str(token_id): bias for token_id, bias in sampling.logit_bias}
    return asked


class Continuation:
    """One generation while it grows over several samples.

    Args:
        prompt_ids: what it began with.
        sampling: its ``max_new_tokens`` bound all samples together.
        max_context: most ids of prompt and samples.

    Raises:
        ContextOverflow: there is no room for a single id.
    """

    def __init__(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, max_context: int
    ) -> None:
        self.ids = list(prompt_ids)
        self.left = min(sampling.max_new_tokens, max_context - len(self.ids))
        self._segments: list[Segment] = []
        self._num_cached: int | None = None
        if self.left < 1:
            raise ContextOverflow(
                f"a prompt of {len(self.ids)} ids leaves no room in a context of {max_context}"
            )

    def add(self, sample: Sample, version: int) -> Generation | None:
        """Take a sample in; the whole generation when that was its end."""
        if self._num_cached is None:  # later samples find what the first one left
            self._num_cached = sample.num_cached
        if sample.ids:
            self._segments.append(
                Segment(ids=sample.ids, logprobs=sample.logprobs, policy_version=version)
            )
            self.ids += sample.ids
            self.left -= len(sample.ids)
        if sample.end == "abort" and self.left > 0:
            return None
        stopped = sample.end == "stop"
        return Generation(
            segments=tuple(self._segments),
            finish_reason=FinishReason.STOP if stopped else FinishReason.LENGTH,
            cached_tokens=self._num_cached,
        )


def complaint(response: httpx.Response) -> str:
    """What a refusal says, in one line."""
    try:
        body = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        body = None
    error = body.get("error", body) if isinstance(body, dict) else None
    said = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(said or response.text).split())[:500]
