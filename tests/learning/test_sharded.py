"""Two processes that hold half of the weights each train what one does, to rounding."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sharded_driver import run
from training_toys import tiny_model

from palestra.config import TrainingSection
from palestra.errors import ConfigError
from palestra.learning.training.ranks import Ranks
from palestra.learning.training.sharding import require_shareable

DRIVER = Path(__file__).with_name("sharded_driver.py")
LIMIT_S = 240


def train(folder: Path, size: int, *, model: Path, **settings: Any) -> dict[str, Any]:
    """What came out of a training with ``size`` processes."""
    folder.mkdir()
    shutil.copytree(model, folder / "model")
    if size == 1:
        run(Ranks(), folder, settings)
        alone: dict[str, Any] = torch.load(folder / "out.pt", weights_only=True)
        return alone
    words = [str(size), str(folder), json.dumps(settings)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(DRIVER), str(rank), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        said = [process.communicate(timeout=LIMIT_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, text in zip(processes, said, strict=True):
        assert process.returncode == 0, text[-3000:]
    out: dict[str, Any] = torch.load(folder / "out.pt", weights_only=True)
    return out


def assert_alike(one: dict[str, Any], two: dict[str, Any]) -> None:
    for step, (alone, shared) in enumerate(zip(one["metrics"], two["metrics"], strict=True)):
        assert set(alone) == set(shared)
        for name, value in alone.items():
            # Of its own part of the weights, as large a sample as of all of them.
            rel = 0.2 if name == "train/weight_change" else 2e-3
            assert shared[name] == pytest.approx(value, rel=rel, abs=1e-5), (step, name)
    assert set(one["weights"]) == set(two["weights"])
    for name, weight in one["weights"].items():
        assert torch.allclose(two["weights"][name], weight, rtol=1e-3, atol=2e-4), name
    assert set(one["ratios"]) == set(two["ratios"])
    for name, ratios in one["ratios"].items():
        assert two["ratios"][name] == pytest.approx(ratios, rel=1e-3), name


@pytest.mark.parametrize(
    ("tied", "settings"),
    [
        (True, {"layout": "packed", "microbatch_tokens": 24}),
        (False, {"layout": "padded", "microbatch_tokens": 40, "minibatches": 2}),
        (True, {"layout": "packed", "activation_checkpointing": True, "microbatch_tokens": 512}),
    ],
    ids=["packed", "padded-untied-minibatches", "one-microbatch-for-two"],
)
def test_two_processes_train_what_one_does(
    tmp_path: Path, tied: bool, settings: dict[str, Any]
) -> None:
    model = tiny_model(tmp_path / "model", tied=tied)
    one = train(tmp_path / "one", 1, model=model, **settings)
    two = train(tmp_path / "two", 2, model=model, **settings)
    assert_alike(one, two)
    before = load_file(model / "model.safetensors")
    written = load_file(tmp_path / "two" / "written" / "model.safetensors")
    assert set(written) == set(before), "the folder for engines has other tensors"
    for name, weight in written.items():
        assert torch.equal(weight, two["weights"][name]), name
        assert not torch.equal(weight, before[name]), f"{name} did not move"


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on(tmp_path: Path, first: int, then: int) -> None:
    model = tiny_model(tmp_path / "model")
    settings: dict[str, Any] = {"layout": "packed", "microbatch_tokens": 64, "dtype": "bfloat16"}
    train(tmp_path / "a", first, model=model, steps=[0, 2], **settings)
    resumed = str(tmp_path / "a")
    same = train(tmp_path / "b", first, model=model, steps=[2, 3], resume=resumed, **settings)
    other = train(tmp_path / "c", then, model=model, steps=[2, 3], resume=resumed, **settings)
    for name in ("train/loss", "train/grad_norm", "train/ppo_kl"):
        step, others = same["metrics"][0][name], other["metrics"][0][name]
        # bfloat16 gradients of two microbatches meet in another order.
        assert others == pytest.approx(step, rel=2e-2, abs=1e-3), name
    for name, weight in same["weights"].items():
        assert torch.allclose(other["weights"][name], weight, rtol=2e-2, atol=4e-3), name


def test_shares_are_equally_many_and_each_item_counts_once() -> None:
    class Of(Ranks):
        def __init__(self, rank: int, size: int) -> None:
            super().__init__()
            self.rank, self.size = rank, size

    for size in (1, 2, 3, 4):
        shares = [Of(rank, size).share("abcde"[:4]) for rank in range(size)]
        assert len({len(share) for share in shares}) == 1
        counted = [one.item for share in shares for one in share if not one.is_extra]
        assert sorted(counted) == list("abcd")
    assert [one.is_extra for one in Of(1, 2).share("a")] == [True]
    with pytest.raises(ValueError, match="nothing to share"):
        Ranks().share("")


def test_what_cannot_be_shared_is_refused() -> None:
    require_shareable(TrainingSection())
    with pytest.raises(ConfigError, match=r"training\.compile, training\.kl_coef"):
        require_shareable(TrainingSection(compile=True, kl_coef=0.1))
