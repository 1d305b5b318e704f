from __future__ import annotations

import random
from pathlib import Path

import pytest
from training_toys import (
    assert_same_bits,
    path_of,
    random_groups,
    tiny_model,
    trainer_at,
    weights,
)

from palestra.config import ModelSection, WarmstartSection
from palestra.learning.training import CheckpointStore, Trainer, warm_start
from palestra.records import TokenPath

SECTION = WarmstartSection(steps=60, lr=1e-2, batch_size=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "start")


def demonstrations(num: int = 12) -> list[TokenPath]:
    """The answer is the question backwards; the question itself is not trained on."""
    rng = random.Random(0)
    paths = []
    for _ in range(num):
        question = [rng.randrange(2, 10) for _ in range(rng.randint(2, 4))]
        paths.append(path_of([(False, [1, *question, 0]), (True, question[::-1])]))
    return paths


def nats_per_id(trainer: Trainer, paths: list[TokenPath]) -> float:
    section = WarmstartSection(steps=1, lr=1e-30, batch_size=len(paths))
    (metrics,) = warm_start(trainer, paths, section, seed=0)
    return metrics["warmstart/loss"]


def test_the_policy_learns_the_demonstrations(folder: Path) -> None:
    trainer, paths = trainer_at(folder), demonstrations()
    before = nats_per_id(trainer, paths)
    steps = list(warm_start(trainer, paths, SECTION, seed=0))
    assert len(steps) == 60
    assert nats_per_id(trainer, paths) < 0.3 * before
    assert trainer.version == 0
    assert set(steps[0]) == {
        "warmstart/loss",
        "warmstart/grad_norm",
        "warmstart/lr",
        "warmstart/num_tokens",
    }
    assert steps[0]["warmstart/lr"] < steps[5]["warmstart/lr"] == pytest.approx(1e-2)
    assert steps[-1]["warmstart/lr"] < 1e-3


def test_microbatches_change_nothing(folder: Path) -> None:
    section = SECTION.model_copy(update={"steps": 10})
    whole = list(warm_start(trainer_at(folder), demonstrations(), section, seed=0))
    small = trainer_at(folder, microbatch_tokens=1)
    parts = list(warm_start(small, demonstrations(), section, seed=0))
    for one, other in zip(whole, parts, strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def test_equal_seeds_give_equal_bits_and_others_do_not(folder: Path) -> None:
    def run(seed: int) -> Trainer:
        trainer = trainer_at(folder)
        list(warm_start(trainer, demonstrations(), SECTION, seed))
        return trainer

    one = weights(run(1))
    assert_same_bits(one, weights(run(1)))
    with pytest.raises(AssertionError):
        assert_same_bits(one, weights(run(2)))


def test_rl_starts_from_the_warm_weights_with_fresh_moments(folder: Path, tmp_path: Path) -> None:
    trainer = trainer_at(folder, kl_coef=0.1)
    list(warm_start(trainer, demonstrations(), SECTION, seed=0))
    assert trainer.state_dict()["optimizer"]["moments"] == {}
    trainer.save_weights(tmp_path / "warm")
    # A trainer that simply begins at these weights is the same from here on.
    direct = trainer_at(tmp_path / "warm", kl_coef=0.1)
    for step in range(2):
        assert trainer.train_step(random_groups(step)) == direct.train_step(random_groups(step))
    assert_same_bits(weights(trainer), weights(direct))


def test_the_warm_reference_survives_a_resume(folder: Path, tmp_path: Path) -> None:
    trainer = trainer_at(folder, kl_coef=0.1)
    list(warm_start(trainer, demonstrations(), SECTION, seed=0))
    trainer.train_step(random_groups(0))
    store = CheckpointStore(tmp_path / "checkpoints", 1)
    store.save(1, trainer, {})
    resumed = trainer_at(folder, kl_coef=0.1)  # its own reference is the cold start
    checkpoint = store.latest()
    assert checkpoint is not None
    store.load(checkpoint, resumed)
    assert trainer.train_step(random_groups(1)) == resumed.train_step(random_groups(1))


def test_closing_early_leaves_a_trainer_that_can_begin(folder: Path) -> None:
    trainer = trainer_at(folder)
    steps = warm_start(trainer, demonstrations(), SECTION, seed=0)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert trainer.train_step(random_groups(0))["train/grad_norm"] > 0


def test_the_moments_of_the_warm_start_work_for_bfloat16_too(folder: Path) -> None:
    trainer = trainer_at(folder, model=ModelSection(device="cpu", dtype="bfloat16"))
    steps = list(warm_start(trainer, demonstrations(), SECTION, seed=0))
    assert steps[-1]["warmstart/loss"] < steps[0]["warmstart/loss"]
    # RL's masters are the warm weights, not the cold ones.
    masters = trainer.state_dict()["optimizer"]["masters"]
    for name, weight in weights(trainer).items():
        if name in masters:
            assert masters[name].to(weight.dtype).equal(weight), name


def test_nothing_to_learn_and_too_late_are_refused(folder: Path) -> None:
    trainer = trainer_at(folder)
    with pytest.raises(ValueError, match="none of 1 demonstrations"):
        warm_start(trainer, [path_of([(False, [1, 2])])], SECTION, seed=0)
    trainer.train_step(random_groups(0))
    with pytest.raises(ValueError, match="RL has begun"):
        warm_start(trainer, demonstrations(), SECTION, seed=0)
