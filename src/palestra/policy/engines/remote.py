"""What an engine's server answers, and the connection to one.

A :class:`Server` is one engine process as seen over HTTP. It samples once and retries
nothing; what several of them are together is a :class:`~palestra.policy.engines.fleet.Fleet`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import aiohttp
import orjson
import yarl

from palestra.errors import ConfigError, ContextOverflow, EngineError
from palestra.records import FinishReason, Generation, SamplingParams, Segment

CONNECT_TIMEOUT_S = 10.0

_JSON = {"Content-Type": "application/json"}
_PASSING = {502, 503, 504}
"""What a server answers that is busy, starting or stopping, or a router whose server is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back over the wire.

    Attributes:
        path: that was asked for.
        sent: the body of the request; empty where there was none.
        status: of HTTP.
        content: the body.
    """

    path: str
    sent: bytes
    status: int
    content: bytes

    @property
    def is_success(self) -> bool:
        """Whether the server did what it was asked."""
        return 200 <= self.status < 300


Listener = Callable[[Answer], None]
"""Told of each answer as it comes."""


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
        self._listener = listener
        try:
            address = yarl.URL(self.url)
        except ValueError as error:
            raise ConfigError(f"the engine's address {base_url} is no URL: {error}") from None
        if address.scheme not in ("http", "https") or not address.host:
            raise ConfigError(f"the engine's address {base_url} is no URL")
        # Opened by the first request: a session belongs to the loop that it was opened in.
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self, path: str, body: Mapping[str, Any], *, timeout_s: float | None = None
    ) -> Answer:
        """The answer, of any status.

        Raises:
            ServerGone: there is none.
            EngineError: it took too long.
        """
        return await self._ask("POST", path, orjson.dumps(body), timeout_s or self._timeout_s)

    async def get(self, path: str, *, timeout_s: float) -> Answer:
        """The answer, of any status; raises as :meth:`post` does."""
        return await self._ask("GET", path, b"", timeout_s)

    async def _ask(self, method: str, path: str, sent: bytes, timeout_s: float) -> Answer:
        if self._session is None:
            self._session = _open_session()
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=min(CONNECT_TIMEOUT_S, timeout_s), sock_read=timeout_s
        )
        try:
            async with self._session.request(
                method,
                self.url + path,
                data=sent or None,
                headers=_JSON,
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                content = await response.read()
        except aiohttp.SocketTimeoutError as error:
            raise self.failure(f"did not answer in {timeout_s:g} s") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            said = str(error) or type(error).__name__
            raise self.failure(f"cannot be reached: {said}", kind=ServerGone) from error
        answer = Answer(path=path, sent=sent, status=response.status, content=content)
        if self._listener is not None:
            self._listener(answer)
        return answer

    def read(self, response: Answer) -> Mapping[str, Any]:
        """The object that a good answer holds.

        Raises:
            ServerBusy: the answer says so.
            EngineError: it is a refusal, or no object.
        """
        if not response.is_success:
            kind = ServerBusy if response.status in _PASSING else EngineError
            said = complaint(response)
            raise self.failure(f"answered {response.status}: {said}", kind=kind)
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
            raise self.failure(f"answered {response.status} when asked for its health")

    def failure(
        self, what: str, *, hint: str | None = None, kind: type[EngineError] = EngineError
    ) -> EngineError:
        """An error that names the server."""
        return kind(f"the engine at {self.url} {what}", hint=hint)

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None


def _open_session() -> aiohttp.ClientSession:
    # aiohttp and not httpx: a turn's request costs a quarter of the processor time, and the
    # gateway has one core for the turns of all sessions.
    # It takes no proxy for the internet from the environment: an engine is next door.
    return aiohttp.ClientSession(
        # The gateway bounds what is in flight, and the engine queues it.
        # Servers hang up on what idles for 5 s, and a request that crosses that is lost.
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=3.0),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=True,
    )


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


def complaint(response: Answer) -> str:
    """What a refusal says, in one line."""
    try:
        body = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        body = None
    error = body.get("error", body) if isinstance(body, dict) else None
    said = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(said or response.content.decode(errors="replace")).split())[:500]
