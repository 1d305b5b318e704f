"""What a training step needs of a GPU, reckoned from a model's shape before anything is loaded.

Bytes that a layer keeps of one id for its backward pass, with e bytes a number, width H, queries
Q, keys and values K each, MLP M (what PyTorch saves of transformers' layers, flash attention):

- a norm of width w: 4 w (it computes in float32) and, where its weight trains, e w;
- what enters the projections of attention and of the MLP: 2 e H;
- attention: its queries, keys, values, output and the output in order: e (3 Q + 2 K), 4 a head;
- the MLP: gate before and after its activation, up, and their product: 4 e M;
- an adapter: e times its rank.

While a layer's gradients are computed another e (M + 2 H) comes and goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from palestra.config_training import ALL_LINEAR, LoraSection, TrainingSection

GIB = 1 << 30
CHUNK_LOGITS = 1 << 28
"""Logits that a GPU holds at once, as ``palestra.learning.training.logprobs`` has them."""

_RUNTIME_BYTES = GIB
"""CUDA's own, with the workspaces of its libraries."""

_UNUSABLE_SHARE = 0.03
"""What the allocator cannot give away again, of what comes and goes."""

_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearShape:
    """A linear layer: its dotted name and its widths."""

    name: str
    num_in: int
    num_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What memory hangs on.

    Attributes:
        num_weights: each counted once.
        num_layers: of the transformer.
        hidden: width of the residual stream.
        queries: width of all query heads together.
        keys: width of all key heads together; values are as wide.
        num_heads: query heads.
        mlp: width inside of the MLP, of all experts that an id visits.
        vocab: rows of the embedding.
        tied: whether input and output embeddings are the same weights.
        normed_heads: whether queries and keys pass a norm.
        linears: all but the output embedding.
    """

    num_weights: int
    num_layers: int
    hidden: int
    queries: int
    keys: int
    num_heads: int
    mlp: int
    vocab: int
    tied: bool
    normed_heads: bool
    linears: tuple[LinearShape, ...]

    @property
    def num_embedding(self) -> int:
        """Weights of one embedding."""
        return self.vocab * self.hidden

    @property
    def num_layer(self) -> int:
        """Weights of one layer, about."""
        embeddings = self.num_embedding * (1 if self.tied else 2)
        return (self.num_weights - embeddings) // self.num_layers

    def num_adapter(self, lora: LoraSection) -> int:
        """Weights of the adapters."""
        return sum(lora.rank * (each.num_in + each.num_out) for each in self.adapted(lora))

    def adapted(self, lora: LoraSection) -> tuple[LinearShape, ...]:
        """The layers that adapters would stand in."""
        return tuple(
            each
            for each in self.linears
            if any(
                t in (ALL_LINEAR, each.name) or each.name.endswith(f".{t}") for t in lora.targets
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPart:
    """One line of an estimate."""

    name: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerMemory:
    """What one process of the trainer holds when it holds most.

    Attributes:
        gpu: parts of its GPU's memory.
        host: parts of the host's memory, for offloaded state.
        moment: of the step at which it holds most.
    """

    gpu: tuple[MemoryPart, ...]
    host: tuple[MemoryPart, ...]
    moment: str

    @property
    def gpu_bytes(self) -> int:
        """All of its GPU's parts."""
        return sum(part.num_bytes for part in self.gpu)

    @property
    def host_bytes(self) -> int:
        """All of the host's parts."""
        return sum(part.num_bytes for part in self.host)


def trainer_memory(
    shape: ModelShape,
    training: TrainingSection,
    *,
    dtype: Literal["float32", "bfloat16"],
    max_row_ids: int,
    num_processes: int = 1,
) -> TrainerMemory:
    """Reckon a step of several microbatches, the largest of which is about to be done.

    Args:
        shape: of the model.
        training: how it is trained.
        dtype: of the weights.
        max_row_ids: of the longest row, which has a microbatch of its own if it must.
        num_processes: that share weights, gradients and optimizer state.
    """
    lora, offload = training.lora, training.offload_optimizer
    number = _BYTES[dtype]
    num_trained = shape.num_weights if lora is None else shape.num_adapter(lora)
    num_all = shape.num_weights + (num_trained if lora else 0)
    has_masters = dtype != "float32" or offload
    state: tuple[MemoryPart, ...] = (
        MemoryPart(name="weights in float32", num_bytes=4 * num_trained * has_masters),
        MemoryPart(name="moments of AdamW", num_bytes=8 * num_trained),
        MemoryPart(name="sums of gradients", num_bytes=4 * num_trained),
    )
    state = tuple(_share(part, num_processes) for part in state if part.num_bytes)
    reference = 0
    if training.kl_coef > 0:
        reference = number * (num_trained if lora else num_all)
    standing = (
        _share(MemoryPart(name="weights", num_bytes=number * num_all), num_processes),
        *(() if offload else state),
        _share(MemoryPart(name="reference of the KL", num_bytes=reference), num_processes),
    )
    moment = max(
        _moments(shape, training, number, max_row_ids, num_processes),
        key=lambda each: each.num_bytes,
    )
    passing = (
        MemoryPart(name="gathered layers", num_bytes=moment.gathered),
        MemoryPart(name="gradients of a pass", num_bytes=moment.gradients),
        MemoryPart(name="activations of a pass", num_bytes=moment.activations),
        MemoryPart(name="logits of a chunk", num_bytes=moment.logits),
    )
    lost = _RUNTIME_BYTES + int(_UNUSABLE_SHARE * moment.num_bytes)
    unusable = MemoryPart(name="CUDA, and what cannot be used", num_bytes=lost)
    return TrainerMemory(
        gpu=tuple(part for part in (*standing, *passing, unusable) if part.num_bytes),
        host=state if offload else (),
        moment=moment.name,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moment:
    """What comes and goes, in bytes, at one moment of a forward and backward pass."""

    name: str
    gathered: int
    gradients: int
    activations: int
    logits: int = 0

    @property
    def num_bytes(self) -> int:
        return self.gathered + self.gradients + self.activations + self.logits


def _moments(
    shape: ModelShape,
    training: TrainingSection,
    number: int,
    max_row_ids: int,
    num_processes: int,
) -> tuple[_Moment, ...]:
    num_ids = max(training.microbatch_tokens, max_row_ids)
    kept = layer_bytes_per_id(shape, training, number) * num_ids
    working = number * (shape.mlp + 2 * shape.hidden) * num_ids
    if training.activation_checkpointing:
        waiting = number * shape.hidden * num_ids  # of each layer: what entered it
        working += kept
    else:
        waiting = kept
    trains_all = training.lora is None
    num_trained = shape.num_weights if training.lora is None else shape.num_adapter(training.lora)
    a_layer = number * (shape.num_layer if trains_all else num_trained // shape.num_layers)
    embedding = number * shape.num_embedding * trains_all
    # A float32 gradient is its own sum, which stands already.
    in_the_end = a_layer if number == 4 else number * num_trained // num_processes
    states = (4 + 2 * number) * shape.hidden * num_ids
    gathered = 0
    if num_processes > 1:  # two layers at a time, and what belongs to none
        gathered = number * (2 * shape.num_layer + shape.num_embedding)
    return (
        _Moment(
            name="logits",
            gathered=gathered,
            gradients=0,
            activations=shape.num_layers * waiting + states,
            logits=_logits_bytes(shape, training, number, num_ids),
        ),
        _Moment(
            name="the last layer's gradients",
            gathered=gathered,
            gradients=embedding + a_layer,
            activations=shape.num_layers * waiting + working,
        ),
        _Moment(
            name="the first layer's gradients",
            gathered=gathered,
            gradients=in_the_end,
            activations=max(waiting + working, embedding),
        ),
    )


def layer_bytes_per_id(shape: ModelShape, training: TrainingSection, number: int) -> int:
    """What one layer keeps of one id for its backward pass, in bytes.

    Args:
        shape: of the model.
        training: whether weights train, or adapters.
        number: bytes of one number.
    """
    lora = training.lora
    of_norm = 4 + (number if lora is None else 0)
    normed = 2 * shape.hidden + (shape.queries + shape.keys if shape.normed_heads else 0)
    attention = number * (3 * shape.queries + 2 * shape.keys) + 4 * shape.num_heads
    of_adapters = 0
    if lora is not None:
        of_adapters = number * lora.rank * len(shape.adapted(lora)) // shape.num_layers
    return (
        of_norm * normed
        + 2 * number * shape.hidden
        + attention
        + 4 * number * shape.mlp
        + of_adapters
    )


def _logits_bytes(shape: ModelShape, training: TrainingSection, number: int, num_ids: int) -> int:
    num_chunk = min(num_ids * shape.vocab, CHUNK_LOGITS)
    # The head's output, the same in float32, and its gradient.
    chunk = num_chunk * (number + 4 + number)
    if training.entropy_coef > 0:
        chunk += num_chunk * 8
    # Summed over chunks in float32, beside a chunk's own and the sum as it is handed on.
    head = 0 if training.lora else shape.num_embedding * (4 + number)
    return chunk + head


def _share(part: MemoryPart, num_processes: int) -> MemoryPart:
    return MemoryPart(name=part.name, num_bytes=part.num_bytes // num_processes)
