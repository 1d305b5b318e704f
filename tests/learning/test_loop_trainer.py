"""The loop with the real trainer and its checkpoints; environment and engine are fakes."""

from __future__ import annotations

from pathlib import Path

import torch
from rollout_makers import make_scheduler
from safetensors.torch import load_file
from training_toys import tiny_model, trainer_at

from palestra.config import CheckpointSection, CorrectionSection
from palestra.learning.loop import TrainingLoop
from palestra.learning.progress import Progress
from palestra.learning.rollouts.fake import FakeGateway, ScriptedEpisode
from palestra.learning.rollouts.scheduler import SchedulerState
from palestra.learning.training import CheckpointStore
from palestra.records import Outcome, Task


class FolderPublisher:
    """Keeps the tensors of each version, and has the fake gateway sample under it."""

    def __init__(self, gateway: FakeGateway) -> None:
        self._gateway = gateway
        self.tensors: dict[int, dict[str, torch.Tensor]] = {}

    @property
    def version(self) -> int:
        return self._gateway.version

    async def publish(self, weights: Path, version: int) -> None:
        self.tensors[version] = load_file(weights / "model.safetensors")
        self._gateway.version = version


def script(task: Task, number: int) -> ScriptedEpisode:
    return ScriptedEpisode(
        outcome=Outcome.SOLVED if number % 2 else Outcome.UNSOLVED, num_turns=1 + number % 3
    )


async def life(folder: Path, model: Path, steps: int) -> FolderPublisher:
    trainer = trainer_at(model, correction=CorrectionSection(mode="off"))
    store = CheckpointStore(folder / "checkpoints", keep_last=2)
    checkpoint = store.latest()
    progress = None
    if checkpoint is not None:
        store.load(checkpoint, trainer)
        progress = Progress.from_wire(checkpoint.progress)
    state = progress.scheduler if progress else SchedulerState()
    scheduler, gateway, _ = make_scheduler(script, state=state, group_size=4)
    publisher = FolderPublisher(gateway)
    async with scheduler:
        summary = await TrainingLoop(
            run_dir=folder,
            batches=scheduler,
            learner=trainer,
            publisher=publisher,
            checkpoints=store,
            checkpointing=CheckpointSection(every=1),
            progress=progress,
        ).run(steps)
    assert summary.progress.version == steps
    assert summary.metrics["train/no_signal"] == 0
    return publisher


async def test_two_lives_end_at_the_same_weights_as_one(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    one = await life(tmp_path / "one", model, 3)
    await life(tmp_path / "two", model, 2)
    two = await life(tmp_path / "two", model, 3)
    assert sorted(one.tensors) == [1, 2, 3]
    assert sorted(two.tensors) == [2, 3], "a fresh engine gets the weights of the checkpoint"
    for name, tensor in one.tensors[3].items():
        assert torch.equal(tensor, two.tensors[3][name]), name
    assert any(not torch.equal(t, one.tensors[1][n]) for n, t in one.tensors[3].items())
