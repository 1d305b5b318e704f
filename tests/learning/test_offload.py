from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_toys import assert_same_bits, path_of, random_groups, tiny_model, trainer_at, weights

from palestra.config import ModelSection, WarmstartSection
from palestra.learning.training import CheckpointStore, Trainer, warm_start
from palestra.learning.training.offload import HostTransfers
from palestra.learning.training.optimizer import PolicyOptimizer

BFLOAT16 = ModelSection(device="cpu", dtype="bfloat16")
MODELS = pytest.mark.parametrize(
    "model", [ModelSection(device="cpu"), BFLOAT16], ids=lambda m: m.dtype
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "start")


def moved_into(one: Trainer, other: Trainer, folder: Path) -> Trainer:
    store = CheckpointStore(folder, 1)
    store.save(one.version, one, {})
    checkpoint = store.latest()
    assert checkpoint is not None
    store.load(checkpoint, other)
    return other


@MODELS
@pytest.mark.parametrize("options", [{}, {"lora": {"rank": 4}}], ids=["all", "lora"])
def test_on_a_cpu_offloading_changes_no_bit(
    folder: Path, model: ModelSection, options: dict[str, Any]
) -> None:
    common = {"model": model, "microbatch_tokens": 60, "minibatches": 2, **options}
    plain = trainer_at(folder, **common)
    offloaded = trainer_at(folder, offload_optimizer=True, **common)
    start = weights(plain)
    section = WarmstartSection(steps=2, lr=1e-2, batch_size=1)
    paths = [path_of([(False, [1]), (True, [3, 4])])]
    warmups = [list(warm_start(t, paths, section, seed=0)) for t in (plain, offloaded)]
    assert warmups[0] == warmups[1]
    for step in range(3):
        groups = random_groups(step, num_groups=4)
        assert plain.train_step(groups) == offloaded.train_step(groups)
    assert_same_bits(weights(plain), weights(offloaded))
    now = weights(plain)
    assert any(not torch.equal(now[name], start[name]) for name in start)


@MODELS
@pytest.mark.parametrize("first", [False, True], ids=["plain-first", "offloaded-first"])
def test_checkpoints_go_either_way(
    folder: Path, tmp_path: Path, model: ModelSection, first: bool
) -> None:
    one = trainer_at(folder, offload_optimizer=first, model=model)
    one.train_step(random_groups(0))
    other = trainer_at(folder, offload_optimizer=not first, model=model)
    moved_into(one, other, tmp_path / "checkpoints")
    for step in (1, 2):
        assert one.train_step(random_groups(step)) == other.train_step(random_groups(step))
    assert_same_bits(weights(one), weights(other))


def test_gradients_of_several_passes_are_summed_and_forgotten(folder: Path) -> None:
    trainer = trainer_at(folder, model=BFLOAT16)
    model = trainer.policy.model
    optimizer = PolicyOptimizer(model, betas=(0.9, 0.98), weight_decay=0.0, offload=True)
    names = [name for name, _ in model.named_parameters()]

    def passes(*values: float) -> dict[str, float]:
        for value in values:
            for weight in model.parameters():
                weight.grad = torch.full_like(weight, value)
            optimizer.accumulate()
            assert all(weight.grad is None for weight in model.parameters())
        return {n: float(optimizer._masters[n].grad.mean()) for n in names}

    # 1 + 2^-10 is no bfloat16: the sum is float32's.
    assert passes(1.0, 2**-10) == dict.fromkeys(names, 1 + 2**-10)
    optimizer.forget_gradients()
    assert passes(3.0) == dict.fromkeys(names, 3.0), "an earlier sum stayed"
    assert optimizer.step(lr=0.1, max_grad_norm=1.0) > 3.0


def test_a_gradient_that_is_not_finite_changes_nothing(folder: Path) -> None:
    trainer = trainer_at(folder, model=BFLOAT16, offload_optimizer=True)
    before = weights(trainer)
    norm = trainer.policy.model.base_model.norm.weight
    with torch.no_grad():
        norm[0] = torch.inf
    assert trainer.train_step(random_groups(1))["train/nonfinite_steps"] == 1
    with torch.no_grad():
        norm.copy_(before["model.norm.weight"])
    assert_same_bits(weights(trainer), before)


def test_tensors_of_any_size_and_dtype_take_turns_in_two_slots() -> None:
    rng = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(shape, generator=rng).to(dtype)
        for shape in ((3,), (), (5, 7), (2, 3, 4), (1, 1))
        for dtype in (torch.float32, torch.bfloat16)
    ]
    transfers = HostTransfers(tensors)
    seen = [found.clone() for found in transfers.to_host(tensors)]
    assert [s.dtype for s in seen] == [t.dtype for t in tensors]
    assert all(torch.equal(s, t) for s, t in zip(seen, tensors, strict=True))
    masters = [torch.randn(t.shape, generator=rng) for t in tensors]
    transfers.to_device(zip(tensors, masters, strict=True))
    assert all(torch.equal(t, m.to(t.dtype)) for t, m in zip(tensors, masters, strict=True))
    assert list(HostTransfers([]).to_host([])) == []
