"""The shape of a model, from its config.json alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from palestra.errors import ConfigError
from palestra.learning.training.memory import LinearShape, ModelShape


def model_shape(folder: Path) -> ModelShape:
    """Count a model's weights and widths; its layers are made without any memory.

    Args:
        folder: with a config.json.

    Raises:
        ConfigError: it is missing, broken or of no causal language model.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        return shape_of(model)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"cannot make out the model in {folder}: {line}") from error


def shape_of(model: Any) -> ModelShape:
    """The shape of a model that exists, if only without memory.

    Raises:
        AttributeError: its configuration lacks what decoders have.
    """
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    output, entry = model.get_output_embeddings(), model.get_input_embeddings()
    return ModelShape(
        num_weights=sum(weight.numel() for weight in model.parameters()),
        num_layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        queries=heads * head,
        keys=(getattr(config, "num_key_value_heads", None) or heads) * head,
        num_heads=heads,
        mlp=_mlp_width(config),
        vocab=entry.weight.shape[0],
        tied=output.weight is entry.weight,
        normed_heads="q_norm" in names,
        linears=tuple(
            LinearShape(name=name, num_in=module.in_features, num_out=module.out_features)
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not output
        ),
    )


def _mlp_width(config: Any) -> int:
    of_expert = getattr(config, "moe_intermediate_size", None)
    if of_expert is None:
        return int(config.intermediate_size)
    visited = config.num_experts_per_tok + (getattr(config, "n_shared_experts", None) or 0)
    return int(of_expert * visited)
