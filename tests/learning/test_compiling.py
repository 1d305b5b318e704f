from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import backward
from training_toys import random_groups, tiny_model, trainer_at, weights

from palestra.errors import ConfigError
from palestra.learning.training.compiling import compile_regions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "start")


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("g++") is None and shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")


# torch's own tracing looks at gradients of tensors that have none.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    "section", [{"kl_coef": 0.1}, {"lora": {"rank": 4}}], ids=["all-kl", "lora"]
)
def test_compiled_regions_compute_the_same_to_rounding(
    folder: Path, section: dict[str, Any]
) -> None:
    common = {"layout": "packed", "activation_checkpointing": True, "microbatch_tokens": 60}
    plain = trainer_at(folder, **common, **section)
    compiled = trainer_at(folder, compile=True, **common, **section)
    torch._dynamo.utils.counters.clear()
    start = weights(plain)
    for step in range(2):  # each of other sizes
        groups = random_groups(step, num_groups=2 + step)
        want, got = backward(plain, groups), backward(compiled, groups)
        for name, gradient in want.items():
            torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6)
        metrics = plain.train_step(groups)
        assert compiled.train_step(groups) == pytest.approx(metrics, rel=1e-3, abs=1e-5)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 2 <= graphs <= 16, f"{graphs} graphs: nothing was compiled, or each size anew"
    now = weights(plain)
    assert any(not torch.equal(now[name], start[name]) for name in start)
    for name, weight in weights(compiled).items():
        torch.testing.assert_close(weight, now[name], rtol=1e-3, atol=1e-5)


def test_a_compiler_must_be_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match="needs a C\\+\\+ compiler"):
        trainer_at(folder, compile=True)


@pytest.mark.usefixtures("compiler")
def test_a_model_without_such_regions_is_refused() -> None:
    with pytest.raises(ConfigError, match="no norms and MLPs"):
        compile_regions(torch.nn.Sequential(torch.nn.Linear(2, 2)))
