from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_toys import path_of
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen3Config

from palestra.config_training import LoraSection, TrainingSection
from palestra.errors import ConfigError
from palestra.learning.training import memory
from palestra.learning.training.batching import TrainingRow, packed_microbatches
from palestra.learning.training.lora import Adapters
from palestra.learning.training.memory import (
    GIB,
    LinearShape,
    ModelShape,
    layer_bytes_per_id,
    trainer_memory,
)
from palestra.learning.training.model import Policy
from palestra.learning.training.shape import model_shape, shape_of

SMALL = ModelShape(
    num_weights=2 * 300 + 32 * 4,
    num_layers=2,
    hidden=4,
    queries=8,
    keys=4,
    num_heads=2,
    mlp=16,
    vocab=32,
    tied=True,
    normed_heads=False,
    linears=tuple(
        LinearShape(name=f"layers.{n}.{name}", num_in=4, num_out=8)
        for n in range(2)
        for name in ("q_proj", "up_proj")
    ),
)
QWEN3_4B = Qwen3Config(
    vocab_size=151_936,
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    tie_word_embeddings=True,
)


def section(**options: Any) -> TrainingSection:
    return TrainingSection(**({"microbatch_tokens": 10} | options))


def parts(shape: ModelShape, training: TrainingSection, **options: Any) -> dict[str, int]:
    found = trainer_memory(shape, training, **({"dtype": "bfloat16", "max_row_ids": 1} | options))
    return {part.name: part.num_bytes for part in found.gpu}


# --- numbers worked by hand -----------------------------------------------------


def test_what_a_layer_keeps_of_an_id() -> None:
    # Norms (4 + 2) * 2 * 4 = 48, inputs 2 * 2 * 4 = 16, attention 2 * (24 + 8) + 4 * 2 = 72,
    # MLP 4 * 2 * 16 = 128.
    assert layer_bytes_per_id(SMALL, section(), 2) == 264
    # Norms whose weights do not train keep 32; two adapters of rank 3 a layer 2 * 3 * 2 = 12.
    assert layer_bytes_per_id(SMALL, section(lora={"rank": 3}), 2) == 260
    # Norms (4 + 4) * 8 = 64, inputs 32, attention 4 * 32 + 8 = 136, MLP 256.
    assert layer_bytes_per_id(SMALL, section(), 4) == 488


def test_state_in_bfloat16() -> None:
    found = parts(SMALL, section(kl_coef=0.1, activation_checkpointing=True))
    assert found["weights"] == 2 * 728
    assert found["weights in float32"] == 4 * 728
    assert found["moments of AdamW"] == 8 * 728
    assert found["sums of gradients"] == 4 * 728
    assert found["reference of the KL"] == 2 * 728


def test_float32_weights_are_their_own_masters() -> None:
    found = parts(SMALL, section(), dtype="float32")
    assert found["weights"] == 4 * 728
    assert "weights in float32" not in found
    assert found["moments of AdamW"] == 8 * 728


def test_offloaded_state_is_the_hosts() -> None:
    found = trainer_memory(SMALL, section(offload_optimizer=True), dtype="bfloat16", max_row_ids=1)
    assert {part.name for part in found.host} == {
        "weights in float32",
        "moments of AdamW",
        "sums of gradients",
    }
    assert found.host_bytes == 16 * 728
    assert not {part.name for part in found.gpu} & {part.name for part in found.host}


def test_adapters_alone_have_state() -> None:
    found = parts(SMALL, section(lora={"rank": 3, "targets": ["q_proj"]}, kl_coef=0.1))
    num_adapter = 2 * 3 * (4 + 8)
    assert found["weights"] == 2 * (728 + num_adapter)
    assert found["moments of AdamW"] == 8 * num_adapter
    assert found["reference of the KL"] == 2 * num_adapter


def test_the_longest_row_may_be_longer_than_a_microbatch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CHUNK_LOGITS", 0)  # else logits outweigh such small layers
    short = parts(SMALL, section(), max_row_ids=10)["activations of a pass"]
    # While the last layer goes back: both layers' 264 an id, and 2 * (16 + 2 * 4) of work.
    assert short == 10 * (2 * 264 + 48)
    assert parts(SMALL, section(), max_row_ids=30)["activations of a pass"] == 3 * short
    anew = parts(SMALL, section(activation_checkpointing=True), max_row_ids=10)
    # While the first goes back: its input of 2 * 4, what it computes anew, and the work on it;
    # the gradients of all weights are there by then.
    assert anew["activations of a pass"] == 10 * (8 + 264 + 48)
    assert anew["gradients of a pass"] == 2 * 728


def test_processes_share_state_and_gather_layers() -> None:
    alone = parts(SMALL, section(activation_checkpointing=True))
    shared = parts(SMALL, section(activation_checkpointing=True), num_processes=4)
    for name in ("weights", "weights in float32", "moments of AdamW", "sums of gradients"):
        assert shared[name] == alone[name] // 4
    assert "gathered layers" not in alone
    assert shared["gathered layers"] == 2 * (2 * 300 + 128)


# --- against what is there ------------------------------------------------------


def test_a_4b_model_is_reckoned_as_it_was_measured() -> None:
    with torch.device("meta"):
        shape = shape_of(AutoModelForCausalLM.from_config(QWEN3_4B))
    assert shape.num_weights == 4_022_468_096
    training = section(
        layout="packed",
        microbatch_tokens=32768,
        activation_checkpointing=True,
        offload_optimizer=True,
    )
    found = parts(shape, training)
    pass_gib = sum(found[n] for n in found if n.partition(" ")[0] != "CUDA,") / GIB
    # docs/results/training.md: 21.7 and 21.9 GiB, of weights, gradients and a pass.
    assert pass_gib == pytest.approx(21.8, rel=0.03)


def kept_bytes_per_id(num_layers: int, dtype: torch.dtype, lora: LoraSection | None) -> float:
    """What autograd saves of an id in a packed pass, but for weights."""
    config = Qwen3Config(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
    )
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    adapters = Adapters(model, lora, base=Path(), seed=0) if lora else None
    policy = Policy(model, layout="packed", adapters=adapters)
    rows = [
        (
            n,
            TrainingRow(
                rollout_id=str(n), path=path_of([(False, [1]), (True, [2] * 99)]), advantage=1.0
            ),
        )
        for n in range(2)
    ]
    (batch,) = packed_microbatches(
        rows, max_tokens=1000, device=torch.device("cpu"), share_prefixes=False
    )
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage().data_ptr()
        if storage not in weights:
            saved[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.score(batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values()) / 200


@pytest.mark.parametrize("lora", [None, LoraSection(rank=8)], ids=["all", "lora"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_layers_keep_what_the_formula_says(dtype: torch.dtype, lora: LoraSection | None) -> None:
    measured = kept_bytes_per_id(3, dtype, lora) - kept_bytes_per_id(2, dtype, lora)
    config = Qwen3Config(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
    )
    with torch.device("meta"):
        shape = shape_of(AutoModelForCausalLM.from_config(config))
    reckoned = layer_bytes_per_id(shape, section(lora=lora), dtype.itemsize)
    assert reckoned == pytest.approx(measured, rel=0.05)


# --- shapes ---------------------------------------------------------------------


def test_a_shape_is_read_from_the_configuration_alone(tmp_path: Path) -> None:
    config = Qwen2Config(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    config.save_pretrained(tmp_path)
    shape = model_shape(tmp_path)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    assert shape.num_weights == sum(weight.numel() for weight in model.parameters())
    assert (shape.queries, shape.keys, shape.mlp, shape.vocab) == (32, 16, 64, 100)
    assert not shape.tied
    assert not shape.normed_heads
    assert len(shape.linears) == 3 * 7
    lora = LoraSection(rank=4)
    with_adapters = Adapters(model, lora, base=tmp_path, seed=0)
    assert shape.num_adapter(lora) == sum(w.numel() for w in with_adapters.weights.values())


@pytest.mark.parametrize("text", [None, "{", '{"model_type": "t5"}', '{"model_type": "nobody"}'])
def test_what_is_no_causal_model_is_said(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match="cannot make out the model"):
        model_shape(tmp_path)
