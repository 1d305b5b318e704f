"""vLLM over HTTP: ids in, ids and logprobs out.

Speaks ``POST /inference/v1/generate`` with ``token_ids``, which a server has with
``--enable-scale-out``, and vLLM's endpoints for weights, which it has under
``VLLM_SERVER_DEV_MODE=1``. Its logprobs are those of the sampling
temperature only under ``--logprobs-mode processed_logprobs``. vLLM says for each answer which
weights sampled which of its ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from palestra.errors import ContextOverflow
from palestra.policy.engines.remote import OPTIONS, Sample, ServerHttp, complaint, more_options
from palestra.records import SamplingParams

HEALTH_TIMEOUT_S = 10.0
LOAD_TIMEOUT_S = 1800.0
CONTROL_TIMEOUT_S = 120.0

_OVERFLOW_WORDS = ("context length", "maximum model length", "max_model_len")
_BAD_REQUEST = 400
_ENDS: dict[str, Literal["stop", "length", "abort"]] = {
    "stop": "stop",
    "length": "length",
    "abort": "abort",
}


class VLLMServer:
    """One vLLM server.

    Args:
        base_url: ``http://HOST:PORT``.
        timeout_s: seconds that one answer may take.

    Raises:
        ConfigError: ``base_url`` is no URL.
    """

    sampling_options = OPTIONS

    def __init__(self, base_url: str, *, timeout_s: float = 1800.0) -> None:
        self._http = ServerHttp(base_url, timeout_s=timeout_s)

    @property
    def url(self) -> str:
        """Where it is."""
        return self._http.url

    async def sample(
        self, ids: Sequence[int], sampling: SamplingParams, *, max_new_tokens: int
    ) -> Sample:
        """Sample one continuation; cancelling closes the connection, which ends it there too.

        Raises:
            ContextOverflow: vLLM says that ``ids`` are too many.
            ServerGone: it may have died.
            ServerBusy: it cannot answer now.
            EngineError: it refuses, or answers nonsense.
        """
        body = _body(ids, sampling, max_new_tokens=max_new_tokens)
        response = await self._http.post("/inference/v1/generate", body)
        if response.status == _BAD_REQUEST:
            said = complaint(response)
            if any(words in said for words in _OVERFLOW_WORDS):
                raise ContextOverflow(said)
        return self._sampled(self._http.read(response))

    async def load(self, weights: Path, stamp: str) -> None:
        """Abort what is in flight, then serve the weights of a folder under ``stamp``.

        vLLM reads the folder itself, so it must see it under the same path. When it fails the
        server stays paused, since its weights may be of both. vLLM 0.32.0 for CPU says nothing
        of it that a tied output head keeps its first weights.

        Raises:
            EngineError: it failed.
        """
        await self._tell("/pause?mode=abort", {})
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(weights)}}
        await self._tell("/collective_rpc", reload, timeout_s=LOAD_TIMEOUT_S)
        # Keys and values of the old weights must not serve a prompt under the new ones.
        await self._tell("/reset_prefix_cache", {})
        await self._tell("/update_weight_version", {"new_version": stamp})
        await self._tell("/resume", {})

    async def health(self) -> None:
        """Return when the server says that its engine runs.

        Raises:
            EngineError: it does not.
        """
        await self._http.health("/health", timeout_s=HEALTH_TIMEOUT_S)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _tell(
        self, path: str, body: Mapping[str, Any], *, timeout_s: float = CONTROL_TIMEOUT_S
    ) -> None:
        response = await self._http.post(path, body, timeout_s=timeout_s)
        if response.is_success:
            return
        hint = "start it with VLLM_SERVER_DEV_MODE=1" if response.status == 404 else None
        what = f"answered {path} with {response.status}: {complaint(response)}"
        raise self._http.failure(what, hint=hint)

    def _sampled(self, answer: Mapping[str, Any]) -> Sample:
        try:
            (choice,) = answer["choices"]
            said = choice["finish_reason"]
            if said not in _ENDS:
                raise self._http.failure(f"ended an answer for the unknown reason {said!r}")
            content = (choice.get("logprobs") or {}).get("content") or ()
            ids = tuple(int(entry["token_id"]) for entry in content)
            # Where a logit is the largest by far, its logprob may come out as 1e-7.
            logprobs = tuple(min(0.0, float(entry["logprob"])) for entry in content)
            if list(ids) != list(choice["token_ids"] or ()):
                raise ValueError("the logprobs are not those of the ids")
            stamps = {str(span["version"]) for span in choice.get("weight_versions") or ()}
            usage = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
            num_cached = usage.get("cached_tokens")
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise self._http.failure(f"answered no ids with logprobs: {error!r}") from error
        if len(stamps) > 1:
            raise self._http.failure(
                f"answered ids of the weights {' and '.join(sorted(stamps))} in one",
                hint="whoever gives it new weights must abort what runs",
            )
        return Sample(
            ids=ids,
            logprobs=logprobs,
            end=_ENDS[said],
            stamp=next(iter(stamps), None),
            num_cached=None if num_cached is None else int(num_cached),
        )


def _body(ids: Sequence[int], sampling: SamplingParams, *, max_new_tokens: int) -> dict[str, Any]:
    params: dict[str, Any] = {
        **more_options(sampling),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": max_new_tokens,
        "stop_token_ids": list(sampling.stop_token_ids),
        "logprobs": 0,  # of the sampled id alone
        "detokenize": False,
    }
    if sampling.seed is not None:
        params["seed"] = sampling.seed
    return {"token_ids": list(ids), "sampling_params": params}
