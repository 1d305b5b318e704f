"""The sections of a recipe that only the Miles backend reads; defaults fit two GPUs of one host."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from palestra.config_base import Section


class MegatronSection(Section):
    """The architecture of the model, which Megatron wants to be told; defaults are Qwen3-4B's."""

    num_layers: int = Field(36, gt=0, description="Transformer layers.")
    hidden_size: int = Field(2560, gt=0, description="Width of the residual stream.")
    ffn_hidden_size: int = Field(9728, gt=0, description="Width inside the feed-forward blocks.")
    num_attention_heads: int = Field(32, gt=0, description="Query heads.")
    num_query_groups: int = Field(8, gt=0, description="Key and value heads.")
    kv_channels: int = Field(128, gt=0, description="Width of one head.")
    vocab_size: int = Field(151936, gt=0, description="Rows of the embedding.")
    rotary_base: int = Field(1_000_000, gt=0, description="Base of the rotary positions.")
    norm_epsilon: float = Field(1e-6, gt=0, description="Of RMSNorm.")
    qk_layernorm: bool = Field(True, description="Whether queries and keys are normalised.")
    more: tuple[str, ...] = Field((), description="Further model arguments, as they stand.")


class MilesSection(Section):
    """How Miles trains the recipe: GPUs, parallelism, engine, checkpoints, and where Ray is."""

    ray_address: str = Field(
        "http://127.0.0.1:8265", description="Ray's dashboard, which takes the job."
    )
    root: str = Field("/root/miles", description="Miles' folder on the cluster, with train.py.")
    megatron: str = Field("/root/Megatron-LM/", description="Megatron's folder on the cluster.")
    num_nodes: int = Field(1, gt=0, description="Hosts that train.")
    gpus_per_node: int = Field(2, gt=0, description="GPUs of each.")
    colocate: bool = Field(True, description="Train and sample on the same GPUs, by turns.")
    tensor_parallel: int = Field(2, gt=0, description="GPUs that share each layer.")
    pipeline_parallel: int = Field(1, gt=0, description="Stages that the layers are cut into.")
    context_parallel: int = Field(1, gt=0, description="GPUs that share each sequence.")
    expert_parallel: int = Field(1, gt=0, description="GPUs that share the experts.")
    expert_tensor_parallel: int = Field(1, gt=0, description="GPUs that share each expert.")
    recompute: Literal["none", "full"] = Field(
        "full", description="Compute activations again in the backward pass."
    )
    balance_data: bool = Field(False, description="Deal sequences out by length.")
    attention_backend: Literal["auto", "flash", "fused", "unfused", "local"] = Field(
        "flash", description="Megatron's attention."
    )
    gpus_per_engine: int = Field(1, gt=0, description="GPUs of one SGLang engine.")
    engine_memory: float = Field(
        0.7, gt=0, lt=1, description="Share of a GPU's memory for weights and cache of SGLang."
    )
    ref_load: str | None = Field(
        None, description="Megatron checkpoint to begin from; none: MODEL_torch_dist."
    )
    load: str | None = Field(None, description="Checkpoint of Miles to go on from.")
    save: str | None = Field(None, description="Where Miles' checkpoints go; none: MODEL_miles/.")
    wandb_project: str = Field(
        "palestra", description="Where wandb logs to, if $WANDB_API_KEY or $WANDB_KEY is set."
    )
    env_vars: dict[str, str] = Field(
        default_factory=dict, description="Further variables of the job; no secrets."
    )
    arguments: tuple[str, ...] = Field(
        (), description="Further arguments of Miles, as they stand; they win."
    )
    model: MegatronSection = MegatronSection()
