"""An SGLang server or router as an engine: ids in, ids and logprobs out, over HTTP.

Speaks ``POST /generate`` with ``input_ids`` and ``return_logprob``, so no text is tokenised
on either side. SGLang stamps one ``weight_version`` on an answer, at its end; whoever
publishes new weights aborts what is in flight first, and what an aborted answer holds
becomes a segment that sampling goes on from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import orjson

from palestra.errors import ConfigError, ContextOverflow, EngineError
from palestra.records import FinishReason, Generation, SamplingParams, Segment

CONNECT_TIMEOUT_S = 10.0
HEALTH_TIMEOUT_S = 10.0
MAX_ABORTS = 64
"""Answers of one generation that may come back aborted before it is given up."""

_OVERFLOW_WORDS = ("context length", "maximum allowed length", "max_req_input_len")
_BAD_REQUEST = 400


class SGLangEngine:
    """Samples from an SGLang server or router; an async context manager.

    Args:
        base_url: ``http://HOST:PORT`` of the server or of a router in front of several.
        max_context: most ids of a prompt and its samples.
        timeout_s: seconds that one answer may take.
        version: of the weights until an answer says otherwise.
    """

    def __init__(
        self, base_url: str, *, max_context: int, timeout_s: float = 1800.0, version: int = 0
    ) -> None:
        self._url = base_url.rstrip("/")
        self._max_context = max_context
        self._timeout_s = timeout_s
        self._version = version
        try:
            self._http = httpx.AsyncClient(
                base_url=self._url,
                timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s)),
                # The gateway bounds what is in flight, and the engine queues it.
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
                # A proxy for the internet has no business between us and an engine next door.
                trust_env=False,
            )
        except httpx.InvalidURL as error:
            raise ConfigError(f"the engine's address {base_url} is no URL: {error}") from None

    @property
    def version(self) -> int:
        """The newest version that an answer was stamped with."""
        return self._version

    @property
    def max_context(self) -> int:
        """Most ids that a prompt and its samples may have together."""
        return self._max_context

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> Generation:
        """Sample one continuation; cancelling closes the connection, which ends it there too.

        Raises:
            ContextOverflow: ``prompt_ids`` leave no room for a single id.
            EngineError: the engine cannot be reached, refuses, or answers nonsense.
        """
        segments: list[Segment] = []
        ids = list(prompt_ids)
        left = min(sampling.max_new_tokens, self._max_context - len(ids))
        if left < 1:
            raise ContextOverflow(
                f"a prompt of {len(ids)} ids leaves no room in a context of {self._max_context}"
            )
        for _ in range(MAX_ABORTS):
            answer = await self._post(_body(ids, sampling, max_new_tokens=left))
            segment, finished = self._read(answer)
            self._version = max(self._version, segment.policy_version)
            if segment.ids:
                segments.append(segment)
                ids += segment.ids
                left -= len(segment.ids)
            if finished == "stop":
                return Generation(segments=tuple(segments), finish_reason=FinishReason.STOP)
            if finished == "length" or left < 1:
                return Generation(segments=tuple(segments), finish_reason=FinishReason.LENGTH)
        raise EngineError(f"the engine at {self._url} aborted one answer {MAX_ABORTS} times")

    async def publish(self, weights: Path, version: int) -> None:
        """Refuse: this engine's weights belong to the trainer that started it.

        Raises:
            EngineError: always.
        """
        raise EngineError(f"the weights of the engine at {self._url} are not ours to publish")

    async def health(self) -> None:
        """Return when the server says that it can work.

        Raises:
            EngineError: it does not.
        """
        try:
            response = await self._http.get("/health", timeout=HEALTH_TIMEOUT_S)
        except httpx.HTTPError as error:
            raise self._failure(f"cannot be reached: {_said(error)}") from error
        if not response.is_success:
            raise self._failure(f"answered {response.status_code} when asked for its health")

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def __aenter__(self) -> SGLangEngine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _post(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            response = await self._http.post(
                "/generate",
                content=orjson.dumps(body),
                headers={"Content-Type": "application/json"},
            )
        except httpx.ReadTimeout as error:
            raise self._failure(f"did not answer in {self._timeout_s:g} s") from error
        except httpx.HTTPError as error:
            raise self._failure(f"cannot be reached: {_said(error)}") from error
        if not response.is_success:
            said = _complaint(response)
            if response.status_code == _BAD_REQUEST and any(w in said for w in _OVERFLOW_WORDS):
                raise ContextOverflow(said)
            raise self._failure(f"answered {response.status_code}: {said}")
        try:
            answer = orjson.loads(response.content)
        except orjson.JSONDecodeError as error:
            raise self._failure("answered something that is not JSON") from error
        if not isinstance(answer, dict):
            raise self._failure(f"answered a {type(answer).__name__} where an object belongs")
        return answer

    def _read(self, answer: Mapping[str, Any]) -> tuple[Segment, str]:
        """What was sampled, and how SGLang calls its end: stop, length or abort."""
        try:
            meta = answer["meta_info"]
            sampled = meta.get("output_token_logprobs") or ()
            segment = Segment(
                ids=tuple(int(entry[1]) for entry in sampled),
                logprobs=tuple(float(entry[0]) for entry in sampled),
                policy_version=_version(meta.get("weight_version")),
            )
            finished = meta["finish_reason"]["type"]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise self._failure(f"answered no ids with logprobs: {error!r}") from error
        if finished not in ("stop", "length", "abort"):
            raise self._failure(f"ended an answer for the unknown reason {finished!r}")
        if not sampled and finished != "abort":
            raise self._failure("answered without logprobs", hint="it must take return_logprob")
        return segment, finished

    def _failure(self, what: str, *, hint: str | None = None) -> EngineError:
        return EngineError(f"the engine at {self._url} {what}", hint=hint)


def _body(ids: Sequence[int], sampling: SamplingParams, *, max_new_tokens: int) -> dict[str, Any]:
    params: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_new_tokens": max_new_tokens,
        "stop_token_ids": list(sampling.stop_token_ids),
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "no_stop_trim": True,
    }
    # Not every SGLang knows it, so it is named only where somebody asked for it.
    if sampling.seed is not None:
        params["sampling_seed"] = sampling.seed
    return {"input_ids": list(ids), "sampling_params": params, "return_logprob": True}


def _version(stamp: Any) -> int:
    """SGLang's stamp is free text; what trainers stamp counts up."""
    text = str(stamp)
    return int(text) if text.isdecimal() else 0


def _complaint(response: httpx.Response) -> str:
    try:
        body = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        body = None
    error = body.get("error", body) if isinstance(body, dict) else None
    said = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(said or response.text).split())[:500]


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
