"""Runs a training loop on fakes and kills it with SIGKILL before each of its file operations.

Run as a program: ``crash_driver.py FOLDER MAX_OFF_POLICY_STEPS``. For n = 1, 2, … it
forks a child that trains and dies at its n-th file operation, and another one that
resumes; it ends when n is beyond the last operation, and prints one JSON line per n.
Python's audit events tell the operations, so the loop itself knows nothing of this.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from rollout_makers import make_scheduler

from palestra.config import CheckpointSection
from palestra.events import EventLog
from palestra.learning.fake import FakeLearner, FakePublisher, FolderCheckpoints
from palestra.learning.loop import TrainingLoop
from palestra.learning.progress import Progress
from palestra.learning.rollouts.fake import ScriptedEpisode
from palestra.learning.rollouts.store import RolloutStore
from palestra.records import Outcome, Task

STEPS = 3
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def script(task: Task, number: int) -> ScriptedEpisode:
    index = int(task.instance_id.removeprefix("task-"))
    solved = number % 2 == 0 or index % 4 == 1  # every fourth group has no signal
    return ScriptedEpisode(outcome=Outcome.SOLVED if solved else Outcome.UNSOLVED)


async def train(folder: Path, allowed: int) -> None:
    learner, checkpoints = FakeLearner(), FolderCheckpoints(folder / "checkpoints")
    wire = checkpoints.latest(learner)
    progress = Progress.from_wire(wire) if wire else None
    scheduler, gateway, _ = make_scheduler(
        script,
        max_off_policy_steps=allowed,
        state=progress.scheduler if progress else None,
        concurrency=6,
    )
    with EventLog(folder / "events.jsonl") as events:
        async with scheduler:
            await TrainingLoop(
                run_dir=folder,
                batches=scheduler,
                learner=learner,
                publisher=FakePublisher(gateway),
                checkpoints=checkpoints,
                checkpointing=CheckpointSection(every=2),
                progress=progress,
                events=events,
            ).run(STEPS)


def die_at(operation: int, folder: Path) -> None:
    count = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in CHANGES or not str(args[0]).startswith(str(folder)):
            return
        if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR):
            return
        count += 1
        if count == operation:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def life(folder: Path, allowed: int, operation: int | None) -> int:
    """One life of the process; returns its wait status."""
    child = os.fork()
    if child == 0:
        if operation is not None:
            die_at(operation, folder)
        code = 1
        try:
            asyncio.run(train(folder, allowed))
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def report(folder: Path) -> dict[str, Any]:
    learner = FakeLearner()
    FolderCheckpoints(folder / "checkpoints").latest(learner)
    store = RolloutStore(folder / "rollouts")
    table = (folder / "metrics.csv").read_text().splitlines()
    return {
        "version": learner.version,
        "trained": learner.trained,
        "stored": [
            s.rollout.rollout_id for step in store.steps() for s in store.read(step) if s.trained
        ],
        "steps": store.steps(),
        "rows": [int(line.split(",")[0]) for line in table[1:]],
        "weights": sorted(int(p.name) for p in (folder / "weights").iterdir()),
        "leftovers": [str(p) for p in folder.rglob("*.tmp")],
    }


def main(root: Path, allowed: int) -> None:
    killed = True
    operation = 0
    while killed:
        operation += 1
        folder = root / str(operation)
        folder.mkdir(parents=True)
        first = life(folder, allowed, operation)
        killed = os.WIFSIGNALED(first)
        second = life(folder, allowed, None)
        line = {"operation": operation, "first": first, "second": second} | report(folder)
        sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
