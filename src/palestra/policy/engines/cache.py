"""The keys and values of a running batch: one row per sequence, one slot per position."""
# ruff: noqa: N803  # shapes stand in names

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from palestra.errors import ConfigError

_LENGTH_STEP = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyValueShape:
    """What a model keeps for one position."""

    num_layers: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_id(self) -> int:
        """Bytes of the keys and values of one position."""
        return 2 * self.num_layers * self.num_heads * self.head_dim * self.dtype.itemsize

    @classmethod
    def of(cls, model: Any) -> KeyValueShape:
        """Read the shape off a pass of ``model`` over one id.

        Raises:
            ConfigError: the model keeps something else than one key and value per
                layer, head and position (sliding windows, recurrent layers).
        """
        kinds = set(getattr(model.config, "layer_types", None) or {"full_attention"})
        if kinds != {"full_attention"}:
            raise _cannot_serve(model, f"its layers are {', '.join(sorted(kinds))}")
        cache = DynamicCache()
        ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        model(input_ids=ids, past_key_values=cache, use_cache=True)
        shapes = {
            tuple(part.shape) for layer in cache.layers for part in (layer.keys, layer.values)
        }
        if len(shapes) != 1:
            raise _cannot_serve(model, "its keys and values differ in shape")
        (_, num_heads, _, head_dim) = shapes.pop()
        return cls(
            num_layers=len(cache.layers),
            num_heads=num_heads,
            head_dim=head_dim,
            dtype=cache.layers[0].keys.dtype,
            device=model.device,
        )


def _cannot_serve(model: Any, reason: str) -> ConfigError:
    return ConfigError(
        f"the local engine cannot serve {type(model).__name__}: {reason}",
        hint="it serves models with full attention in every layer",
    )


class SlotCache(Cache):  # type: ignore[misc]  # transformers ships no types
    """Keys and values in one tensor that grows with the batch, up to rows x length.

    The model calls :meth:`update` in each layer; :meth:`aim` says before each pass
    which rows and positions it works on.

    Args:
        shape: of one position.
        max_rows: sequences that ever share the batch.
        max_length: positions of the longest one.
    """

    def __init__(self, shape: KeyValueShape, *, max_rows: int, max_length: int) -> None:
        super().__init__(layers=[])  # the layers' own objects are not used
        self._shape = shape
        self._max_rows = max_rows
        self._max_length = max_length
        self._kv = self._zeros(0, 0)  # [2, layers, rows, heads, length, head_dim]
        self._first = 0
        self._end = 0
        self._length = 0
        self._rows_T1: Tensor = torch.empty(0)
        self._positions_RT: Tensor = torch.empty(0)

    @property
    def num_bytes(self) -> int:
        """Memory that is held."""
        return self._kv.numel() * self._kv.element_size()

    @property
    def spare_position(self) -> int:
        """A position that no sequence reaches: padding writes there."""
        return self._kv.shape[4] - 1

    def reserve(self, rows: int, length: int) -> None:
        """Make room for ``rows`` sequences of ``length`` positions."""
        have_rows, have_length = self._kv.shape[2], self._kv.shape[4]
        if rows <= have_rows and length < have_length:
            return
        # Doubling keeps the copying linear in what is finally held.
        new_rows = have_rows
        if rows > have_rows:
            new_rows = min(self._max_rows, max(rows, 2 * have_rows))
        new_length = have_length
        if length >= have_length:
            wanted = max(length + 1, 2 * have_length, _LENGTH_STEP)
            new_length = min(self._max_length + 1, wanted)
        grown = self._zeros(new_rows, new_length)
        grown[:, :, :have_rows, :, :have_length] = self._kv
        self._kv = grown

    def aim(self, first: int, positions_RT: Tensor, length: int) -> Tensor:
        """Point the next pass at rows from ``first`` on, writing at ``positions_RT``.

        Args:
            first: the first of the neighbouring rows.
            positions_RT: one row per sequence; the query there sees positions up to its own.
            length: all rows are read up to here.

        Returns:
            The attention mask, [rows, 1, queries, length], true where a query looks.
        """
        rows = positions_RT.shape[0]
        self._first, self._end, self._length = first, first + rows, length
        self._positions_RT = positions_RT
        device = self._shape.device
        self._rows_T1 = torch.arange(rows, device=device).unsqueeze(1)
        slots = torch.arange(length, device=device)
        return slots <= positions_RT[:, None, :, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the pass's keys and values of one layer; give all up to its length."""
        rows = self._kv[:, layer_idx, self._first : self._end]
        keys, values = rows[0], rows[1]
        where = (self._rows_T1, slice(None), self._positions_RT)
        keys[where] = key_states.transpose(1, 2)
        values[where] = value_states.transpose(1, 2)
        return keys[:, :, : self._length], values[:, :, : self._length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions that the current pass reads."""
        return self._length

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` positions of a row over another row's."""
        self._kv[:, :, target, :, :length] = self._kv[:, :, source, :, :length]

    def load_row(self, row: int, kv: Tensor) -> None:
        """Write what :meth:`save_row` gave at the start of ``row``."""
        self._kv[:, :, row, :, : kv.shape[3]] = kv

    def save_row(self, row: int, length: int) -> Tensor:
        """A copy of the first ``length`` positions, [2, layers, heads, length, head_dim]."""
        return self._kv[:, :, row, :, :length].clone()

    def _zeros(self, rows: int, length: int) -> Tensor:
        # Zeros and not empty memory: a masked slot counts 0 times what is in it, and
        # 0 * NaN is NaN.
        return torch.zeros(
            (2, self._shape.num_layers, rows, self._shape.num_heads, length, self._shape.head_dim),
            dtype=self._shape.dtype,
            device=self._shape.device,
        )
