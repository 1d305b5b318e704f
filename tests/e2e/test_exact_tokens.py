"""What mini-swe-agent sampled is what is trained on, though its text tokenises differently."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from palestra.config import (
    AgentSection,
    EnvironmentSection,
    Recipe,
    RolloutsSection,
    SamplingSection,
)
from palestra.environment.agents.choose import make_agent
from palestra.environment.agents.protocol import ModelEndpoint
from palestra.environment.episode import EpisodeRunner
from palestra.environment.grading.runner import SandboxGrader
from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.protocol import SandboxLimits
from palestra.learning.rollouts.collector import RolloutCollector
from palestra.learning.rollouts.gateway_client import GatewayClient
from palestra.learning.training.batching import training_rows
from palestra.policy.engines.scripted import ScriptedEngine
from palestra.policy.tiny import make_tiny_model
from palestra.records import EpisodeResult, Generation, Group, Outcome, SamplingParams, Task
from palestra.run.demonstrations import teacher
from palestra.run.policy import load_tokenizer, serving
from palestra.tasks.source import load_tasks


class World:
    """The environment wing in this process, as the collector asks for it."""

    def __init__(self, runner: EpisodeRunner) -> None:
        self._runner = runner

    async def run(
        self, task: Task, *, sglang_url: str, sampling: SamplingSection, idempotency_key: str
    ) -> EpisodeResult:
        return await self._runner.run(task, ModelEndpoint(base_url=sglang_url, model="policy"))


class Recording(ScriptedEngine):
    """Keeps what was sampled from which prompt."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> Generation:
        generation = await super().generate(prompt_ids, sampling)
        self.calls.append((tuple(prompt_ids), generation.ids))
        return generation


@asynccontextmanager
async def collector(
    folder: Path, engine: ScriptedEngine, tokenizer: Any
) -> AsyncIterator[RolloutCollector]:
    limits = SandboxLimits()
    section = EnvironmentSection()
    backend = BubblewrapBackend(store=None, state_dir=folder / "state")
    runner = EpisodeRunner(
        backend,
        make_agent(AgentSection(prompt="kata"), step_timeout_s=30, time_limit_s=60),
        SandboxGrader(backend, limits, eval_timeout_s=60),
        section,
        limits,
    )
    async with (
        serving(engine, tokenizer, Recipe(), name="policy") as url,
        GatewayClient(url) as gateway,
    ):
        yield RolloutCollector(World(runner), gateway, sampling=SamplingSection())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tasks = load_tasks("katas:train?seed=3&n=8&level=1")
    folder = tmp_path_factory.mktemp("model")
    return make_tiny_model(folder, texts=[t.problem_statement for t in tasks], num_layers=1)


async def test_a_mini_episode_is_trained_on_the_sampled_ids(tmp_path: Path, model: Path) -> None:
    task = load_tasks("katas:train?seed=3&n=1&level=1")[0]
    tokenizer = load_tokenizer(model)

    def letter_by_letter(text: str) -> list[int]:
        # A model may sample "c", "a", "t" where the tokenizer would write "cat".
        return [i for letter in text for i in tokenizer.encode(letter, add_special_tokens=False)]

    engine = Recording(
        letter_by_letter,
        lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
        teacher([task]),
        stop_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
    )
    async with collector(tmp_path, engine, tokenizer) as collect:
        rollout = await collect.collect(task, "r-0")
    assert rollout.episode.outcome is Outcome.SOLVED, rollout.episode.error
    assert len(engine.calls) == 3

    answers = [m.content for m in rollout.episode.messages if m.role == "assistant"]
    for (_, sampled), answer in zip(engine.calls, answers, strict=True):
        assert tokenizer.encode(answer, add_special_tokens=False) != list(sampled[:-1])

    # Each prompt starts with everything before it, sample by sample.
    for (prompt, sampled), (following, _) in zip(engine.calls, engine.calls[1:], strict=False):
        assert following[: len(prompt) + len(sampled)] == prompt + sampled

    (path,) = rollout.trace.paths()
    last_prompt, last_sampled = engine.calls[-1]
    assert path.ids == last_prompt + last_sampled
    trained = tuple(i for i, on in zip(path.ids, path.trainable, strict=True) if on)
    assert trained == tuple(i for _, sampled in engine.calls for i in sampled)

    group = Group(group_id="g", instance_id=task.instance_id, task_index=0, rollouts=(rollout,) * 2)
    rows = training_rows([group], truncated=RolloutsSection().truncated)
    assert all(row.path == path for row in rows), "batching changed what was sampled"
