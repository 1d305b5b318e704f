from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_toys import random_groups, tiny_model, trainer_at

from palestra.learning.training import Trainer
from palestra.learning.training.movement import WeightSample


def values(trainer: Trainer) -> torch.Tensor:
    # Not its state dict, in which a tied head stands a second time.
    return torch.cat([w.detach().reshape(-1).clone() for w in trainer.policy.model.parameters()])


def test_a_step_says_how_far_it_moved_the_weights(tmp_path: Path) -> None:
    trainer = trainer_at(tiny_model(tmp_path / "model"), lr=1e-2)
    before = values(trainer)
    said = trainer.train_step(random_groups(0))["train/weight_change"]
    # Every value of so small a model is in the sample.
    change = (values(trainer) - before).square().mean().sqrt() / before.square().mean().sqrt()
    assert said == pytest.approx(float(change))


def test_weights_that_stand_changed_by_nothing(tmp_path: Path) -> None:
    trainer = trainer_at(tiny_model(tmp_path / "model"), lr=1e-30)
    metrics = trainer.train_step(random_groups(0))
    assert metrics["train/weight_change"] == 0.0
    assert metrics["train/grad_norm"] > 0


def test_large_tensors_are_sampled_evenly() -> None:
    model = torch.nn.Linear(1000, 1000, bias=False)
    sample = WeightSample(model)
    with torch.no_grad():
        model.weight[::2] *= 1.5  # half of all values, wherever they are looked at
    assert sample.relative_change() == pytest.approx(0.5 * 0.5**0.5, rel=0.1)
