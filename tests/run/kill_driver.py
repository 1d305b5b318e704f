"""Trains with every real part but the sandboxes, kills it with SIGKILL at random moments, resumes.

Run as a program: ``kill_driver.py FOLDER SEED NUM_RUNS``. The first run is left alone; each of
the others is killed up to twice, wherever it happens to be, and then ends. One JSON line a
run says what it came to. Children are forked from a process that has all imports done and no
thread, so that a life is short.
"""

from __future__ import annotations

import asyncio
import csv
import dataclasses
import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import load_file
from transformers.utils import logging as transformers_logging

from palestra.config import Recipe, SamplingSection
from palestra.events import EventLog
from palestra.learning.best import BestCheckpoints
from palestra.learning.loop import TrainingLoop
from palestra.learning.progress import Progress
from palestra.learning.rollouts.collector import RolloutCollector
from palestra.learning.rollouts.gateway_client import GatewayClient
from palestra.learning.rollouts.mixed_order import MixedOrder
from palestra.learning.rollouts.scheduler import RolloutScheduler
from palestra.learning.rollouts.store import RolloutStore
from palestra.learning.rollouts.task_order import TaskOrder
from palestra.learning.training import CheckpointStore, Trainer
from palestra.policy.engines.local import LocalEngine
from palestra.policy.tiny import make_tiny_model
from palestra.records import EpisodeResult, ExitStatus, Outcome, Task, Timings
from palestra.run.policy import load_tokenizer, serving

STEPS = 4
NUM_KILLS = 2
RECIPE = Recipe.model_validate(
    {
        "seed": 3,
        "model": {"device": "cpu", "max_context": 256},
        # One thread, and sequences that are decoded alone: sums then have one order.
        "engine": {"max_batch": 1},
        "sampling": {"max_new_tokens": 6},
        "rollouts": {"groups_per_step": 2, "group_size": 3, "max_off_policy_steps": 0},
        "checkpoints": {"every": 2, "keep_last": 2},
        # Whatever draws numbers or remembers: minibatches, dealt rewards, KL, a decaying rate.
        "training": {
            "steps": STEPS,
            "lr": 1e-3,
            "lr_decay": "cosine",
            "minibatches": 2,
            "kl_coef": 0.1,
            "shuffle_rewards": True,
        },
    }
)


def make_task(number: int) -> Task:
    return Task(
        instance_id=f"task-{number}",
        repo="owner/repo",
        base_commit="0" * 40,
        problem_statement=f"Mend number {number}.",
        image="",
        fail_to_pass=("t::a",),
        pass_to_pass=(),
        gold_patch="",
        test_patch="",
        eval_script="true",
        log_parser="pytest",
        row={"difficulty": 1 + number % 5},
    )


class ChattingEnvironment:
    """Two turns with the policy; the reward is drawn from what it said."""

    def __init__(self) -> None:
        self._client = httpx.AsyncClient(timeout=60)

    async def run(
        self, task: Task, *, sglang_url: str, sampling: SamplingSection, idempotency_key: str
    ) -> EpisodeResult:
        messages = [{"role": "user", "content": task.problem_statement}]
        for _ in range(2):
            answer = await self._client.post(
                f"{sglang_url}/chat/completions", json={"model": "policy", "messages": messages}
            )
            answer.raise_for_status()
            said = answer.json()["choices"][0]["message"]["content"] or ""
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "ok"}]
        digest = hashlib.sha256(json.dumps(messages).encode()).digest()
        return EpisodeResult(
            episode_id=idempotency_key,
            instance_id=task.instance_id,
            outcome=Outcome.SOLVED if digest[0] % 2 else Outcome.UNSOLVED,
            exit_status=ExitStatus.SUBMITTED,
            messages=(),
            patch="",
            submission=None,
            verdict=None,
            error=None,
            num_turns=2,
            num_tool_calls=0,
            timings=Timings(),
        )

    async def aclose(self) -> None:
        await self._client.aclose()


async def train(run: Path, model: Path) -> None:
    torch.set_num_threads(1)
    best = BestCheckpoints(run / "checkpoints", metric="sampled/solve_rate", count=0)
    store = CheckpointStore(run / "checkpoints", RECIPE.checkpoints.keep_last, best=best)
    trainer = Trainer(
        model, model=RECIPE.model, training=RECIPE.training, truncated="keep", seed=RECIPE.seed
    )
    checkpoint = store.latest()
    if checkpoint is None:
        store.save(0, trainer, Progress(version=0).to_wire())
        checkpoint = store.latest()
        assert checkpoint is not None
    else:
        store.load(checkpoint, trainer)
    progress = Progress.from_wire(checkpoint.progress)
    state = progress.scheduler
    engine = LocalEngine(
        checkpoint.model,
        section=RECIPE.engine,
        max_context=RECIPE.model.max_context,
        device="cpu",
        version=progress.version,
    )
    environment = ChattingEnvironment()
    order = MixedOrder(
        TaskOrder([make_task(n) for n in range(20)], seed=RECIPE.seed, position=state.position),
        group_size=RECIPE.rollouts.group_size,
        seed=RECIPE.seed,
        draws=state.draws,
        tries=state.tries,
    )
    with EventLog(run / "events.jsonl") as events:
        async with (
            engine,
            serving(engine, load_tokenizer(model), RECIPE, name="policy") as url,
            GatewayClient(url) as gateway,
            RolloutScheduler(
                collector=RolloutCollector(
                    environment, gateway, sampling=RECIPE.sampling, seed=RECIPE.seed
                ),
                order=order,
                section=RECIPE.rollouts,
                run="run",
                concurrency=4,
                pending=state.pending,
                events=events,
            ) as scheduler,
        ):
            await TrainingLoop(
                run_dir=run,
                batches=scheduler,
                learner=trainer,
                publisher=engine,
                checkpoints=store,
                checkpointing=RECIPE.checkpoints,
                best=best,
                progress=progress,
                events=events,
            ).run(STEPS)
    await environment.aclose()


def life(run: Path, model: Path, killed_after: int | None) -> int:
    """One life of the process, killed once it has logged so many bytes; its wait status."""
    log = run / "events.jsonl"
    before = log.stat().st_size if log.exists() else 0
    child = os.fork()
    if child == 0:
        code = 1
        try:
            asyncio.run(train(run, model))
            code = 0
        finally:
            os._exit(code)
    while killed_after is not None:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if log.exists() and log.stat().st_size - before >= killed_after:
            os.kill(child, signal.SIGKILL)  # not waited for yet, so its number is still its own
            break
        time.sleep(0.0005)
    return os.waitpid(child, 0)[1]


def digest_of(value: Any) -> str:
    """The same for the same bits: of tensors, and of what holds them."""
    found = hashlib.sha256()
    if isinstance(value, torch.Tensor):
        found.update(str(value.dtype).encode() + value.contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            found.update(f"{key}={digest_of(value[key])}".encode())
    elif isinstance(value, list | tuple):
        found.update("".join(map(digest_of, value)).encode())
    else:
        found.update(repr(value).encode())
    return found.hexdigest()[:16]


def state_of(run: Path) -> dict[str, Any]:
    """Everything that two runs must agree on, bit for bit."""
    last = run / "checkpoints" / str(STEPS)
    store = RolloutStore(run / "rollouts")
    stored = [one for step in store.steps() for one in store.read(step)]
    trained = [one.rollout.rollout_id for one in stored if one.trained]
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    timed = ("time", "agent/", "rollout/wait_s")
    return {
        "model": digest_of(load_file(last / "model" / "model.safetensors")),
        "trainer": {
            name: digest_of(value)
            for name, value in torch.load(last / "trainer.pt", weights_only=True).items()
        },
        "progress": json.loads((last / "progress.json").read_bytes()),
        "sampled": digest_of(
            [
                [turn.context_ids, *map(dataclasses.astuple, turn.segments)]
                for one in stored
                for turn in one.rollout.trace.turns
            ]
        ),
        "steps": store.steps(),
        "trained": trained,
        "metrics": [
            {name: value for name, value in row.items() if not name.startswith(timed)}
            for row in rows
        ],
    }


def main(root: Path, seed: int, num_runs: int) -> None:
    transformers_logging.disable_progress_bar()
    model = make_tiny_model(root / "model", texts=["Mend number 0123456789. ok"], seed=1)
    chance = random.Random(seed)
    num_bytes = 0
    for number in range(num_runs):
        run = root / str(number)
        run.mkdir()
        lives = []
        for _ in range(NUM_KILLS if number else 0):
            lives.append(life(run, model, chance.randrange(num_bytes)))
            if not os.WIFSIGNALED(lives[-1]):
                break
        status = life(run, model, None)
        lives.append(status)
        num_bytes = num_bytes or (run / "events.jsonl").stat().st_size
        sys.stdout.write(json.dumps({"lives": lives} | (state_of(run) if not status else {})))
        sys.stdout.write("\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
