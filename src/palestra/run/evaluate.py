"""``palestra eval``: episodes on tasks, graded, with a solve rate and its interval."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from palestra.config import Recipe
from palestra.environment.agents.protocol import ModelEndpoint
from palestra.environment.episode import EpisodeRunner
from palestra.environment.images.prefetch import Prefetcher
from palestra.learning.metrics import Interval
from palestra.learning.pass_at_k import (
    Measure,
    TaskTries,
    reported_pass_at_k,
    solve_rate,
    tries_by_task,
)
from palestra.records import EpisodeResult, Task
from palestra.wire import episode_to_wire


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """What the episodes came to; rates are over those that have a verdict.

    Attributes:
        episodes: every one, by task.
        attempts: at each task.
    """

    episodes: tuple[EpisodeResult, ...]
    attempts: int = 1

    @property
    def rewards(self) -> tuple[float, ...]:
        """Of every episode that has one."""
        return tuple(e.reward for e in self.episodes if e.reward is not None)

    @property
    def solve_rate(self) -> float | None:
        """Share solved; ``None`` when nothing could be graded."""
        return sum(self.rewards) / len(self.rewards) if self.rewards else None

    @property
    def interval(self) -> Interval | None:
        """95 % of the solve rate, by task; ``None`` when nothing could be graded."""
        rate = solve_rate(self.tries)
        return rate.interval if rate is not None else None

    @property
    def tries(self) -> tuple[TaskTries, ...]:
        """The graded episodes, by task."""
        return tries_by_task((e.instance_id, e.reward) for e in self.episodes)

    def pass_at(self) -> dict[int, Measure]:
        """Pass@k by k; nothing where each task was attempted once."""
        return reported_pass_at_k(self.tries, self.attempts)

    def to_wire(self) -> dict[str, Any]:
        """The summary that ``--json`` prints."""
        interval = self.interval
        return {
            "solve_rate": self.solve_rate,
            "ci95": [interval.low, interval.high] if interval else None,
            "attempts": self.attempts,
            "pass_at_k": {
                str(k): {
                    "rate": found.share,
                    "ci95": [found.interval.low, found.interval.high],
                    "tasks": found.num_tasks,
                }
                for k, found in self.pass_at().items()
            },
            "outcomes": dict(Counter(str(e.outcome) for e in self.episodes)),
            "episodes": [
                {
                    "instance_id": e.instance_id,
                    "reward": e.reward,
                    "outcome": str(e.outcome),
                    "exit_status": e.exit_status,
                    "error": e.error,
                    "num_turns": e.num_turns,
                    "total_s": e.timings.total_s,
                }
                for e in self.episodes
            ],
        }


async def run_episodes(
    runner: EpisodeRunner,
    tasks: Sequence[Task],
    *,
    endpoint: ModelEndpoint | None,
    attempts: int,
    concurrency: int,
    out: Path | None,
    on_episode: Callable[[EpisodeResult], None],
) -> EvaluationReport:
    """Run ``attempts`` episodes of every task, at most ``concurrency`` at once.

    Images are brought ahead, in the order of the tasks. Each episode is written to
    ``out/episodes.jsonl`` as it ends, so that nothing is lost when the evaluation is stopped.
    """
    slots = asyncio.Semaphore(concurrency)
    log = (out / "episodes.jsonl").open("ab") if out else None

    async def attempt(task: Task) -> EpisodeResult:
        async with slots:
            episode = await runner.run(task, endpoint)
        if log is not None:
            log.write(orjson.dumps(episode_to_wire(episode), option=orjson.OPT_APPEND_NEWLINE))
            log.flush()
        on_episode(episode)
        return episode

    try:
        async with (
            Prefetcher(runner.backend.ensure_image) as prefetcher,
            asyncio.TaskGroup() as group,
        ):
            prefetcher.want(task.image for task in tasks)
            running = [group.create_task(attempt(task)) for task in tasks for _ in range(attempts)]
    finally:
        if log is not None:
            log.close()
    report = EvaluationReport(episodes=tuple(task.result() for task in running), attempts=attempts)
    if out is not None:
        (out / "report.json").write_bytes(
            orjson.dumps(report.to_wire(), option=orjson.OPT_INDENT_2)
        )
    return report


@asynccontextmanager
async def model_endpoint(name: str, recipe: Recipe) -> AsyncIterator[ModelEndpoint]:
    """Serve a model (a checkpoint's folder, ``demo``) with the recipe's engine, for one evaluation.

    Raises:
        ConfigError: there is no such model.
    """
    from palestra.run.engine_servers import engine_of
    from palestra.run.policy import find_model, load_tokenizer, serving

    folder = find_model(name)
    async with (
        _temporary_folder() as logs,
        engine_of(recipe, model=folder, weights=folder, version=0, logs=logs) as engine,
        serving(engine, load_tokenizer(folder), recipe, name=folder.name) as url,
    ):
        yield ModelEndpoint(base_url=f"{url}/v1", model=folder.name)


@asynccontextmanager
async def _temporary_folder() -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="palestra-engines-") as folder:
        yield Path(folder)
