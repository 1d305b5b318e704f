"""The real half of ``idle_share.py``: gateway, engine, weights and training steps on a device."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from idle_parts import EpisodeShape, Record, result_of, scripted_task

from palestra.config import Recipe, SamplingSection
from palestra.errors import EnvironmentUnavailable
from palestra.learning.rollouts.gateway_client import GatewayClient
from palestra.learning.training import Trainer
from palestra.policy.engines.protocol import Engine
from palestra.recipe_files import parse_recipe
from palestra.records import EpisodeResult, Group, Task
from palestra.run.engine_servers import engine_of
from palestra.run.policy import load_tokenizer, model_folder, serving

SYSTEM = "You mend code. Say one command at a time."
OBSERVATION = "The command ended with exit code 0 and printed:\n" + "def f(x): return x + 1\n" * 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RealParts:
    """What a run needs besides the loop."""

    learner: RecordedLearner
    publisher: RecordedPublisher
    gateway: GatewayClient
    environment: ChattingEnvironment


class RecordedLearner:
    """The real trainer; says when it trains."""

    def __init__(self, trainer: Trainer, record: Record, device: str) -> None:
        self._trainer = trainer
        self._record = record
        self._device = device

    @property
    def version(self) -> int:
        """Of the weights."""
        return self._trainer.version

    @property
    def ratios(self) -> Mapping[str, Sequence[float]]:
        """Of the last step."""
        return self._trainer.ratios

    def train_step(self, groups: Sequence[Group]) -> dict[str, float]:
        """One real step, until the device is done with it."""
        with self._record.busy("train"):
            metrics = self._trainer.train_step(groups)
            if self._device != "cpu":
                torch.cuda.current_stream().synchronize()
        return metrics

    def save_weights(self, folder: Path) -> None:
        """Write the weights, as for any engine."""
        self._trainer.save_weights(folder)


class RecordedPublisher:
    """The real engine as a publisher; says when it takes weights."""

    def __init__(self, engine: Engine, record: Record) -> None:
        self._engine = engine
        self._record = record

    @property
    def version(self) -> int:
        """That serves."""
        return self._engine.version

    async def publish(self, weights: Path, version: int) -> None:
        """Serve new weights."""
        with self._record.busy("publish"):
            await self._engine.publish(weights, version)


class ChattingEnvironment:
    """Plays episodes of a shape: real turns of the model, commands that only take time."""

    def __init__(self, shape: EpisodeShape, seed: int, record: Record) -> None:
        self.shape = shape
        self._seed = seed
        self._record = record
        self._counts: dict[str, int] = {}
        self._client = httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=None))

    async def run(
        self, task: Task, *, sglang_url: str, sampling: SamplingSection, idempotency_key: str
    ) -> EpisodeResult:
        """Play the next episode of a task."""
        number = self._counts[task.instance_id] = self._counts.get(task.instance_id, -1) + 1
        factor, reward = self.shape.drawn(self._seed, task, number)
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"{task.problem_statement} ({task.instance_id})"},
        ]
        for _ in range(self.shape.num_turns):
            messages.append(await self._turn(sglang_url, messages))
            messages.append({"role": "user", "content": OBSERVATION})
            await asyncio.sleep(self.shape.command_s * factor)
        await asyncio.sleep(self.shape.grading_s * factor)
        return result_of(task, idempotency_key, reward, self.shape.num_turns)

    async def _turn(self, url: str, messages: list[dict[str, str]]) -> dict[str, str]:
        with self._record.busy("sample"):
            try:
                answer = await self._client.post(
                    f"{url}/chat/completions", json={"model": "policy", "messages": messages}
                )
                answer.raise_for_status()
            except httpx.HTTPError as error:
                raise EnvironmentUnavailable(f"no answer of the policy: {error}") from error
        message = answer.json()["choices"][0]["message"]
        return {"role": "assistant", "content": message["content"] or ""}

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()


def recipe_for(
    *, device: str, model: str, engine: str | None, max_new_tokens: int, places: int
) -> Recipe:
    """The recipe of a run on a device."""
    data: dict[str, Any] = {
        "model": {
            "path": model,
            "device": device,
            "dtype": "float32" if device == "cpu" else "bfloat16",
            "max_context": 4096,
        },
        "sampling": {"max_new_tokens": max_new_tokens},
        "engine": {"kind": "sglang", "urls": [engine]} if engine else {"max_batch": places},
        # Rewards are drawn, so what is learnt is noise; it takes the time of learning.
        "training": {"lr": 1e-6, "correction": {"mode": "off"}},
    }
    return parse_recipe(data, [], origin="benchmark")


@asynccontextmanager
async def real_parts(
    recipe: Recipe, shape: EpisodeShape, seed: int, record: Record, folder: Path
) -> AsyncIterator[RealParts]:
    """Load the model twice, as trainer and engine, and serve it through a gateway."""
    model = model_folder(
        recipe.model, folder / "start", [scripted_task(n) for n in range(8)], recipe.seed
    )
    trainer = Trainer(
        model, model=recipe.model, training=recipe.training, truncated="keep", seed=recipe.seed
    )
    environment = ChattingEnvironment(shape, seed, record)
    try:
        async with (
            engine_of(recipe, model=model, weights=model, version=0, logs=folder) as engine,
            serving(engine, load_tokenizer(model), recipe, name="policy") as url,
            GatewayClient(url) as gateway,
        ):
            yield RealParts(
                learner=RecordedLearner(trainer, record, recipe.model.device),
                publisher=RecordedPublisher(engine, record),
                gateway=gateway,
                environment=environment,
            )
    finally:
        await environment.aclose()
        del trainer
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class DriverReading:
    """What the driver says of the GPU: in how much of its last period a kernel ran."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def add(self, percent: int) -> None:
        """Note a reading of now."""
        self._seen.append((time.monotonic(), percent))

    def busy(self, began_s: float, ended_s: float) -> float | None:
        """Mean over a window, in [0, 1]; ``None``: the driver was not asked."""
        found = [percent for at_s, percent in self._seen if began_s <= at_s <= ended_s]
        return sum(found) / len(found) / 100 if found else None


@contextmanager
def driver_reading(period_s: float = 0.05) -> Iterator[DriverReading]:
    """Ask the driver of the first GPU again and again; without its library, nothing is read."""
    reading, stop = DriverReading(), threading.Event()
    try:
        import pynvml
    except ImportError:
        yield reading
        return
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)

    def ask() -> None:
        while not stop.wait(period_s):
            reading.add(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)

    thread = threading.Thread(target=ask, name="driver", daemon=True)
    thread.start()
    try:
        yield reading
    finally:
        stop.set()
        thread.join()
        pynvml.nvmlShutdown()
