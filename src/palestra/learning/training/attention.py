"""Attention over a packed stream: rows lie one behind the other, and none sees another.

Registered with transformers under :data:`NAME`, so that models which pass their keyword
arguments on to attention (those of Llama's shape) need no change. On a GPU with 16-bit weights
it is one variable-length flash kernel (Dao 2023, arXiv:2307.08691); elsewhere each segment goes
through PyTorch's attention by itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from palestra.errors import ConfigError

NAME = "palestra_packed"
_FLASH_DTYPES = (torch.float16, torch.bfloat16)
_LONG_IDS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Consecutive ids of a stream that see each other causally.

    Attributes:
        start: first place in the stream.
        length: ids, at least one.
        prefix: an earlier segment that all of them see whole and whose positions they continue;
            it has no prefix itself. ``None``: they begin at position 0.
    """

    start: int
    length: int
    prefix: Segment | None = None

    @property
    def num_before(self) -> int:
        """Ids that all of this segment see."""
        return 0 if self.prefix is None else self.prefix.length

    @property
    def key_places(self) -> list[int]:
        """Places in the stream of the keys that the segment's last id sees."""
        before = [] if self.prefix is None else self.prefix.key_places
        return [*before, *range(self.start, self.start + self.length)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """All segments of a stream of S ids, in its order, with what kernels want to know of them."""

    segments: tuple[Segment, ...]
    positions_S: torch.Tensor
    query_ends: torch.Tensor  # int32, 0 first
    key_ends: torch.Tensor  # int32, 0 first
    key_places_K: torch.Tensor | None
    """Keys of the segments, one after the other; ``None``: the stream as it is."""

    @classmethod
    def of(cls, segments: tuple[Segment, ...], *, device: torch.device) -> Segments:
        """Work out the tensors.

        Args:
            segments: that fill the stream without gaps.
            device: where the tensors go.
        """

        def ends(lengths: list[int]) -> torch.Tensor:
            return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)

        positions = [s.num_before + t for s in segments for t in range(s.length)]
        shares = any(segment.prefix is not None for segment in segments)
        places = [place for s in segments for place in s.key_places] if shares else []
        return cls(
            segments=segments,
            positions_S=torch.tensor(positions, dtype=torch.int64, device=device),
            query_ends=ends([s.length for s in segments]),
            key_ends=ends([s.num_before + s.length for s in segments]),
            key_places_K=torch.tensor(places, device=device) if shares else None,
        )

    @property
    def are_long(self) -> bool:
        """Whether PyTorch's attention by segment (cuDNN on Hopper) beats one flash kernel."""
        mean = len(self.positions_S) / len(self.segments)
        return self.key_places_K is None and mean >= _LONG_IDS

    @property
    def longest_query(self) -> int:
        """Most ids of a segment."""
        return max(segment.length for segment in self.segments)

    @property
    def longest_key(self) -> int:
        """Most ids that a segment sees."""
        return max(segment.num_before + segment.length for segment in self.segments)


def use_packed_attention(model: Any) -> None:
    """Let a model's layers attend within the segments that its forward pass is given.

    Without segments they attend as before.

    Raises:
        ConfigError: the model does not let its attention be chosen.
    """
    AttentionInterface.register(NAME, packed_attention)
    try:
        model.set_attn_implementation(NAME)
    except (AttributeError, ValueError) as error:
        raise ConfigError(
            f"{type(model).__name__} does not take packed rows", hint='training.layout = "padded"'
        ) from error


def packed_attention(
    module: torch.nn.Module,
    query_BHSD: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: Segments | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend causally within segments; transformers' signature.

    Returns:
        Of shape [1, S, heads, width], and no attention weights.

    Raises:
        ConfigError: the layer wants a window or sinks.
    """
    if segments is None:
        output_BSHD, _ = sdpa_attention_forward(
            module,
            query_BHSD,
            key_BHSD,
            value_BHSD,
            attention_mask,
            scaling=scaling,
            sliding_window=sliding_window,
            **kwargs,
        )
        return output_BSHD, None
    if sliding_window is not None or kwargs.get("s_aux") is not None or kwargs.get("softcap"):
        raise ConfigError(
            "packed rows need plain causal attention: this model has windows, sinks or soft caps",
            hint='training.layout = "padded"',
        )
    has_flash = query_BHSD.is_cuda and query_BHSD.dtype in _FLASH_DTYPES
    attend = _in_one_kernel if has_flash and not segments.are_long else _one_by_one
    output_SHD = attend(query_BHSD[0], key_BHSD[0], value_BHSD[0], segments, scaling)
    return output_SHD[None], None


def _one_by_one(
    query_HSD: torch.Tensor,
    key_HSD: torch.Tensor,
    value_HSD: torch.Tensor,
    segments: Segments,
    scaling: float | None,
) -> torch.Tensor:
    outputs = []
    for segment in segments.segments:
        before, length = segment.num_before, segment.length
        keys_hKD, values_hKD = (_seen_by(segment, each) for each in (key_HSD, value_HSD))
        mask_QK = None
        if before:
            size = (length, before + length)
            mask_QK = torch.ones(size, dtype=torch.bool, device=query_HSD.device).tril(before)
        output_1HQD = scaled_dot_product_attention(
            query_HSD[None, :, segment.start : segment.start + length],
            keys_hKD[None],
            values_hKD[None],
            attn_mask=mask_QK,
            is_causal=mask_QK is None,
            scale=scaling,
            enable_gqa=True,
        )
        outputs.append(output_1HQD[0].transpose(0, 1))
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def _seen_by(segment: Segment, values_HSD: torch.Tensor) -> torch.Tensor:
    own = values_HSD[:, segment.start : segment.start + segment.length]
    prefix = segment.prefix
    if prefix is None:
        return own
    return torch.cat([values_HSD[:, prefix.start : prefix.start + prefix.length], own], dim=1)


def _in_one_kernel(
    query_HSD: torch.Tensor,
    key_HSD: torch.Tensor,
    value_HSD: torch.Tensor,
    segments: Segments,
    scaling: float | None,
    *,
    kernel: Callable[..., Any] | None = None,
) -> torch.Tensor:
    """All segments at once; where keys outnumber queries, both end together.

    Args:
        query_HSD: of the stream.
        key_HSD: of the stream; may have fewer heads.
        value_HSD: of the stream; as the keys.
        segments: of the stream.
        scaling: of the products.
        kernel: with the signature of PyTorch's ``varlen_attn``, which is the default.
    """
    if kernel is None:
        from torch.nn.attention.varlen import varlen_attn

        kernel = varlen_attn
    query_SHD, key_KHD, value_KHD = (x.transpose(0, 1) for x in (query_HSD, key_HSD, value_HSD))
    if segments.key_places_K is not None:
        key_KHD, value_KHD = key_KHD[segments.key_places_K], value_KHD[segments.key_places_K]
    grouped = query_HSD.shape[0] // key_HSD.shape[0]
    options: dict[str, Any] = {}
    if grouped > 1 and "enable_gqa" in inspect.signature(kernel).parameters:
        options["enable_gqa"] = True
    elif grouped > 1:  # PyTorch 2.11
        key_KHD, value_KHD = (x.repeat_interleave(grouped, dim=1) for x in (key_KHD, value_KHD))
    output_SHD = kernel(
        query_SHD.contiguous(),
        key_KHD.contiguous(),
        value_KHD.contiguous(),
        segments.query_ends,
        segments.key_ends,
        segments.longest_query,
        segments.longest_key,
        scale=scaling,
        window_size=(-1, 0),  # causal
        **options,
    )
    return cast("torch.Tensor", output_SHD)
