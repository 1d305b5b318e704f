"""The engine in this process: a transformers model with continuous batching."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch

from palestra.config import EngineSection
from palestra.errors import ConfigError, EngineError
from palestra.policy.engines.batch import Batch
from palestra.policy.engines.cache import KeyValueShape
from palestra.policy.engines.request import Request
from palestra.policy.engines.weights import choose_device, load_model, read_weights
from palestra.policy.engines.worker import Worker
from palestra.records import Generation, SamplingParams

PREFIX_CACHE_BYTES = 1 << 30
STOP_TIMEOUT_S = 60.0
HEALTH_TIMEOUT_S = 60.0


class LocalEngine:
    """Samples from a Hugging Face model; an async context manager.

    Entering loads the model and starts one thread that decodes all requests
    together; they join and leave between decode steps. Keys and values take at
    most ``section.max_batch`` x ``max_context`` positions, reached only if used.
    A seed gives the same ids whatever else is in the batch.

    ``section.num_threads`` is set from the engine's thread, but PyTorch knows no setting of
    one thread only: threads that use PyTorch for the first time later take it over, and so
    does MKL in the whole process. On a CPU that others use too, 1 is fastest: two threads
    that wait for each other in every operation wait for whoever has the other core.

    Args:
        model_path: folder of the starting weights.
        section: batch size and threads.
        max_context: most ids of a prompt and its samples.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: of the weights; log-probabilities are computed in float32.
        version: of the starting weights.
        prefix_cache_ids: most ids of finished sequences whose keys and values are
            kept for their next turn; ``None``: as many as a full batch has, held to 1 GiB.
    """

    def __init__(
        self,
        model_path: Path,
        *,
        section: EngineSection,
        max_context: int,
        device: str = "auto",
        dtype: Literal["float32", "bfloat16"] = "float32",
        version: int = 0,
        prefix_cache_ids: int | None = None,
    ) -> None:
        self.model_path = model_path
        self._section = section
        self._max_context = max_context
        self._device = choose_device(device)
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._first_version = version
        self._prefix_cache_ids = prefix_cache_ids
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="palestra-weights")
        self._running: _Running | None = None

    @property
    def version(self) -> int:
        """Version of the weights that serve now."""
        return self._running.batch.version if self._running else self._first_version

    @property
    def max_context(self) -> int:
        """Most ids that a prompt and its samples may have together."""
        return self._max_context

    @property
    def num_prefilled_ids(self) -> int:
        """Prompt ids that were computed so far; ids found in the prefix cache are not."""
        return self._require_running().batch.num_prefilled_ids

    @property
    def num_sampled_ids(self) -> int:
        """Ids that were sampled so far, for answered and for cancelled requests."""
        return self._require_running().batch.num_sampled_ids

    async def __aenter__(self) -> LocalEngine:
        """Load the model and start the thread.

        Raises:
            ConfigError: there is no complete model that this engine can serve.
        """
        try:
            loop = asyncio.get_running_loop()
            self._running = await loop.run_in_executor(self._loader, self._load)
        except BaseException:
            self._loader.shutdown(wait=False)
            raise
        self._running.worker.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        await self.aclose()

    async def aclose(self) -> None:
        """End the thread after its current step; whoever still waits gets an ``EngineError``.

        Raises:
            EngineError: the thread did not end within a minute.
        """
        if self._running is None:
            return
        worker, self._first_version = self._running.worker, self.version
        self._running = None
        self._loader.shutdown(wait=False, cancel_futures=True)
        worker.stop()
        if not await asyncio.to_thread(worker.join, STOP_TIMEOUT_S):
            raise EngineError(f"the engine's thread did not end within {STOP_TIMEOUT_S:.0f} s")

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> Generation:
        """Sample one continuation of ``prompt_ids``; cancelling frees its row at the next step.

        Raises:
            ContextOverflow: ``prompt_ids`` leave no room for a single id.
            EngineError: the engine failed or is closed.
            ValueError: the prompt is empty or has unknown ids, or ``sampling`` is out of range.
        """
        running = self._require_running()
        request = Request(
            prompt_ids,
            sampling,
            vocab_size=running.vocab_size,
            max_context=self._max_context,
        )
        running.worker.submit(request)
        return await asyncio.wrap_future(request.future)

    async def publish(self, weights: Path, version: int) -> None:
        """Serve the weights of a Hugging Face folder as ``version``.

        They are read and checked while decoding goes on, and swapped in between two
        steps. Running sequences keep what they sampled as a segment and go on under
        the new weights.

        Raises:
            EngineError: ``version`` does not rise, or the weights do not fit; the old
                ones then stay in force.
        """
        running = self._require_running()
        if version <= self.version:
            raise EngineError(f"version {version} does not rise above {self.version}")
        loop = asyncio.get_running_loop()
        tensors = await loop.run_in_executor(self._loader, read_weights, weights, running.model)
        await asyncio.wrap_future(
            running.worker.call(lambda: running.batch.publish(tensors, version))
        )

    async def health(self) -> None:
        """Return when the thread has answered between two steps.

        Raises:
            EngineError: it is closed, broken or stuck.
        """
        answer = asyncio.wrap_future(self._require_running().worker.call(lambda: None))
        try:
            await asyncio.wait_for(answer, HEALTH_TIMEOUT_S)
        except TimeoutError:
            raise EngineError(f"the engine did not answer in {HEALTH_TIMEOUT_S:.0f} s") from None

    def _require_running(self) -> _Running:
        if self._running is None:
            raise EngineError("the engine is not running")
        return self._running

    def _load(self) -> _Running:
        model = load_model(self.model_path, device=self._device, dtype=self._dtype)
        longest = getattr(model.config, "max_position_embeddings", None)
        if longest is not None and self._max_context > longest:
            raise ConfigError(
                f"model.max_context is {self._max_context}, "
                f"but the model in {self.model_path} knows {longest} positions"
            )
        with torch.inference_mode():
            shape = KeyValueShape.of(model)
            max_rows = self._section.max_batch
            affordable = PREFIX_CACHE_BYTES // shape.bytes_per_id
            prefix_ids = self._prefix_cache_ids
            if prefix_ids is None:
                prefix_ids = min(max_rows * self._max_context, affordable)
            batch = Batch(
                model,
                shape,
                version=self._first_version,
                max_rows=max_rows,
                max_context=self._max_context,
                prefix_ids=prefix_ids,
            )
        return _Running(
            model=model,
            vocab_size=model.get_input_embeddings().weight.shape[0],
            batch=batch,
            worker=Worker(batch, num_threads=self._section.num_threads),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    model: Any
    vocab_size: int
    batch: Batch  # the worker's, but for its version
    worker: Worker
