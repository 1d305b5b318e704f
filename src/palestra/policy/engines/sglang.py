"""SGLang over HTTP: ids in, ids and logprobs out.

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

from palestra.errors import ContextOverflow, EngineError
from palestra.policy.engines.remote import (
    OPTIONS,
    Continuation,
    Listener,
    Sample,
    ServerHttp,
    complaint,
    more_options,
)
from palestra.records import Generation, SamplingParams

HEALTH_TIMEOUT_S = 25.0
"""SGLang samples an id to know its health, and gives that 20 s."""
LOAD_TIMEOUT_S = 1800.0
MAX_ABORTS = 64
"""Answers of one generation that may come back aborted before it is given up."""

_OVERFLOW_WORDS = ("context length", "maximum allowed length", "max_req_input_len")
_BAD_REQUEST = 400


class SGLangServer:
    """One SGLang server, or a router in front of several.

    Args:
        base_url: ``http://HOST:PORT``.
        timeout_s: seconds that one answer may take.
        listener: hears what comes over the wire.

    Raises:
        ConfigError: ``base_url`` is no URL.
    """

    sampling_options = OPTIONS | {"stop"}

    def __init__(
        self, base_url: str, *, timeout_s: float = 1800.0, listener: Listener | None = None
    ) -> None:
        self._http = ServerHttp(base_url, timeout_s=timeout_s, listener=listener)

    @property
    def url(self) -> str:
        """Where it is."""
        return self._http.url

    async def sample(
        self, ids: Sequence[int], sampling: SamplingParams, *, max_new_tokens: int
    ) -> Sample:
        """Sample one continuation; cancelling closes the connection, which ends it there too.

        Raises:
            ContextOverflow: SGLang says that ``ids`` are too many.
            ServerGone: it may have died.
            ServerBusy: it cannot answer now.
            EngineError: it refuses, or answers nonsense.
        """
        body = _body(ids, sampling, max_new_tokens=max_new_tokens)
        response = await self._http.post("/generate", body)
        if response.status == _BAD_REQUEST:
            said = complaint(response)
            if any(words in said for words in _OVERFLOW_WORDS):
                raise ContextOverflow(said)
        return self._sampled(self._http.read(response))

    async def load(self, weights: Path, stamp: str) -> None:
        """Abort what is in flight, then serve the weights of a folder under ``stamp``.

        SGLang reads the folder itself, so it must see it under the same path. When it
        fails half-way, SGLang 0.5.15 does not return to the weights before.

        Raises:
            EngineError: it failed.
        """
        response = await self._http.post(
            "/update_weights_from_disk",
            {
                "model_path": str(weights),
                "abort_all_requests": True,
                "weight_version": stamp,
                "flush_cache": True,
            },
            timeout_s=LOAD_TIMEOUT_S,
        )
        if not self._http.read(response).get("success"):
            raise self._http.failure(f"did not take the weights {weights}: {complaint(response)}")

    async def health(self) -> None:
        """Return when the server has sampled something just now.

        Raises:
            EngineError: it does not.
        """
        await self._http.health("/health", timeout_s=HEALTH_TIMEOUT_S)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    def _sampled(self, answer: Mapping[str, Any]) -> Sample:
        try:
            meta = answer["meta_info"]
            sampled = meta.get("output_token_logprobs") or ()
            end = meta["finish_reason"]["type"]
            if end not in ("stop", "length", "abort"):
                raise self._http.failure(f"ended an answer for the unknown reason {end!r}")
            logprobs = tuple(float(entry[0]) for entry in sampled)
            if any(not logprob <= 1e-6 for logprob in logprobs):
                raise ValueError("a logprob is not a number ≤ 0")
            stamp, num_cached = meta.get("weight_version"), meta.get("cached_tokens")
            sample = Sample(
                ids=tuple(int(entry[1]) for entry in sampled),
                logprobs=logprobs,
                end=end,
                stamp=None if stamp is None else str(stamp),
                num_cached=None if num_cached is None else int(num_cached),
            )
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise self._http.failure(f"answered no ids with logprobs: {error!r}") from error
        if not sampled and end != "abort":
            hint = "it must take return_logprob"
            raise self._http.failure("answered without logprobs", hint=hint)
        return sample


class SGLangEngine:
    """Samples from an SGLang server or router that belongs to others; an async context manager.

    Args:
        base_url: ``http://HOST:PORT`` of the server or of a router in front of several.
        max_context: most ids of a prompt and its samples.
        timeout_s: seconds that one answer may take.
        version: of the weights until an answer says otherwise.
    """

    sampling_options = SGLangServer.sampling_options

    def __init__(
        self, base_url: str, *, max_context: int, timeout_s: float = 1800.0, version: int = 0
    ) -> None:
        self._server = SGLangServer(base_url, timeout_s=timeout_s)
        self._max_context = max_context
        self._version = version

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
        growing = Continuation(prompt_ids, sampling, self._max_context)
        for _ in range(MAX_ABORTS):
            sample = await self._server.sample(growing.ids, sampling, max_new_tokens=growing.left)
            version = _counted(sample.stamp)
            self._version = max(self._version, version)
            if (generation := growing.add(sample, version)) is not None:
                return generation
        raise EngineError(f"the engine at {self._server.url} aborted one answer {MAX_ABORTS} times")

    async def publish(self, weights: Path, version: int) -> None:
        """Refuse: this engine's weights belong to the trainer that started it.

        Raises:
            EngineError: always.
        """
        raise EngineError(
            f"the weights of the engine at {self._server.url} are not ours to publish"
        )

    async def health(self) -> None:
        """Return when the server says that it can work.

        Raises:
            EngineError: it does not.
        """
        await self._server.health()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._server.aclose()

    async def __aenter__(self) -> SGLangEngine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()


def _body(ids: Sequence[int], sampling: SamplingParams, *, max_new_tokens: int) -> dict[str, Any]:
    params: dict[str, Any] = {
        **more_options(sampling),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_new_tokens": max_new_tokens,
        "stop_token_ids": list(sampling.stop_token_ids),
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "no_stop_trim": True,
    }
    if sampling.stop:
        params["stop"] = list(sampling.stop)
    # Not every SGLang knows it, so it is named only where somebody asked for it.
    if sampling.seed is not None:
        params["sampling_seed"] = sampling.seed
    return {"input_ids": list(ids), "sampling_params": params, "return_logprob": True}


def _counted(stamp: str | None) -> int:
    """The stamp is free text; what other trainers stamp counts up."""
    return int(stamp) if stamp is not None and stamp.isdecimal() else 0
