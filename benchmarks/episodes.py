"""Scripted kata episodes: ours, and the same commands in mini-swe-agent's bubblewrap environment.

Ours starts a sandbox for the agent and a pristine one for the tests, takes the diff of
the working tree and grades. The other runs the same three commands and then the tests in
the same folder: no fresh sandbox, no diff, no limits, no process left alive between
commands. Both run the same tasks, several at once, in turns in one run. Processor time
is ours and that of every process that we waited for; unlike seconds, it hardly depends on
what else the machine does.

    python benchmarks/episodes.py [--episodes 64] [--concurrency 4] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from palestra.config import EnvironmentSection
from palestra.environment.agents.scripted import ScriptedAgent
from palestra.environment.episode import EpisodeRunner
from palestra.environment.grading.runner import SandboxGrader
from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.bwrap import find_bwrap
from palestra.environment.sandboxes.protocol import SandboxLimits
from palestra.records import Task
from palestra.tasks.katas import demonstration
from palestra.tasks.source import load_tasks


async def ours(tasks: list[Task], concurrency: int, state: Path) -> float:
    """Seconds for one graded episode of every task, without the trial start."""
    limits = SandboxLimits(memory_bytes=512 << 20, num_pids=64, disk_bytes=64 << 20)
    backend = BubblewrapBackend(store=None, state_dir=state)
    await backend.check()
    runner = EpisodeRunner(
        backend,
        ScriptedAgent(demonstration),
        SandboxGrader(backend, limits, eval_timeout_s=60),
        EnvironmentSection(),
        limits,
    )
    slots = asyncio.Semaphore(concurrency)

    async def one(task: Task) -> float | None:
        async with slots:
            return (await runner.run(task, None)).reward

    started = time.perf_counter()
    rewards = await asyncio.gather(*map(one, tasks))
    seconds = time.perf_counter() - started
    assert all(reward == 1.0 for reward in rewards), rewards
    return seconds


def theirs(tasks: list[Task], concurrency: int) -> float:
    """Seconds for the same commands and tests in their environment."""
    from minisweagent.environments.extra.bubblewrap import BubblewrapEnvironment
    from minisweagent.exceptions import Submitted

    executable = str(find_bwrap().path)

    def one(task: Task) -> None:
        environment = BubblewrapEnvironment(executable=executable)
        for file in task.files:
            path = environment.working_dir / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file.text)
        for command in demonstration(task):
            try:
                environment.execute({"command": command})
            except Submitted:
                break
        output = environment.execute({"command": task.eval_script})["output"]
        environment.cleanup()
        assert "FAILED" not in output, output

    started = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(one, tasks))
    return time.perf_counter() - started


def processor_s() -> float:
    """Processor seconds of this process and of all that it, or they, waited for."""
    used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def measured(work: Callable[[], float], num_episodes: int) -> tuple[float, float]:
    """Seconds that ``work`` reports, and processor milliseconds an episode."""
    before_s = processor_s()
    seconds = work()
    return seconds, (processor_s() - before_s) / num_episodes * 1e3


def main() -> None:
    """Measure in turns and print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    # What minisweagent does at its import: greet, and make a folder for its settings.
    os.environ.setdefault("MSWEA_SILENT_STARTUP", "1")
    mine, other = [], []
    with tempfile.TemporaryDirectory() as state:
        for number in range(args.rounds):
            tasks = load_tasks(f"katas:train?seed={number}&n={args.episodes}&level=1")
            run = partial(ours, tasks, args.concurrency, Path(state))
            mine.append(measured(lambda run=run: asyncio.run(run()), args.episodes))
            run = partial(theirs, tasks, args.concurrency)
            other.append(measured(run, args.episodes))
    (a, a_ms), (b, b_ms) = (
        map(statistics.median, zip(*each, strict=True)) for each in (mine, other)
    )
    print(
        f"ours:   {args.episodes} episodes, two sandboxes each, graded: {a:.2f} s, "
        f"{a_ms:.1f} ms of processor time an episode"
    )
    print(
        f"theirs: the same commands and tests, one folder, no sandbox kept: {b:.2f} s, "
        f"{b_ms:.1f} ms of processor time an episode"
    )
    print(f"ratio theirs/ours: {b / a:.2f} in seconds, {b_ms / a_ms:.2f} in processor time")


if __name__ == "__main__":
    main()
