"""One of several processes that train a policy together; started by test_sharded.py.

    python sharded_driver.py RANK SIZE FOLDER SETTINGS

``FOLDER`` holds the model and takes what came out, from the first process: ``out.pt`` and the
Hugging Face folder ``written``. With ``resume`` in the settings it begins from ``state.pt`` and
``written`` of an earlier run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from training_toys import CPU_MODEL, random_groups

from palestra.config import ModelSection, TrainingSection
from palestra.learning.training import Trainer
from palestra.learning.training.ranks import Ranks


def run(ranks: Ranks, folder: Path, settings: dict[str, Any]) -> None:
    """Train and, as the first process, write down what came out."""
    settings = dict(settings)
    dtype = settings.pop("dtype", "float32")
    first, last = settings.pop("steps", [0, 3])
    resume = settings.pop("resume", None)
    trainer = Trainer(
        folder / "model",
        model=ModelSection(**{**CPU_MODEL.model_dump(), "dtype": dtype}),
        training=TrainingSection(lr=1e-2, **settings),
        truncated="keep",
        seed=0,
        ranks=ranks,
    )
    if resume:
        trainer.load_weights(Path(resume) / "written")
        trainer.load_state_dict(torch.load(Path(resume) / "state.pt", weights_only=True))
    metrics = [trainer.train_step(random_groups(seed)) for seed in range(first, last)]
    ratios = {name: list(found) for name, found in trainer.ratios.items()}
    weights, state = trainer.policy.state_dict(), trainer.state_dict()
    trainer.save_weights(folder / "written")
    if ranks.rank == 0:
        torch.save(state, folder / "state.pt")
        torch.save({"metrics": metrics, "ratios": ratios, "weights": weights}, folder / "out.pt")


def main() -> None:
    """Join the others and run."""
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    settings = json.loads(sys.argv[4])
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    try:
        run(Ranks(init_device_mesh("cpu", (size,))), folder, settings)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
