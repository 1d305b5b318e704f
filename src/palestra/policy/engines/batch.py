"""Continuous batching: sequences join and leave between decode steps."""
# ruff: noqa: N806  # shapes stand in names

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from palestra.errors import EngineError
from palestra.policy.engines.cache import KeyValueShape, SlotCache
from palestra.policy.engines.prefix import PrefixCache, as_ids, common_length
from palestra.policy.engines.request import Request
from palestra.policy.engines.sampler import RowSettings, sample
from palestra.policy.engines.weights import swap_weights

PREFILL_IDS = 2048
"""Padded ids in one prefill pass: bounds its memory, fills the machine."""

WORTH_WAITING = 32
"""Ids in common with a request that joins now for which another waits its turn to copy."""

GATHER_STEPS = 4
"""Decode steps that newcomers wait at most, so that several share a prefill pass."""

GATHER_SHARE = 8
"""One newcomer for this many running rows is enough not to wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Joining:
    request: Request
    known: int  # leading ids whose keys and values are already there
    kv: Tensor | None  # theirs, from the prefix cache
    donor: int | None  # or the running row that has them

    @property
    def missing(self) -> int:
        # The last id is left to the decode step, which wants its logits.
        return len(self.request.ids) - 1 - self.known


class Batch:
    """The sequences that one model decodes together. Belongs to one thread.

    Rows are kept without holes, so that a step reads keys and values in place.
    Every row's keys and values cover all of its ids but the last, which the next
    step feeds.

    Args:
        model: a Hugging Face causal language model with full attention.
        version: of its weights.
        max_rows: sequences decoded together; others wait.
        max_context: ids of the longest sequence.
        prefix_ids: bound of the prefix cache.

    Attributes:
        version: of the weights that serve now.
        prefixes: keys and values of finished sequences.
        num_prefilled_ids: ids that went through the model without being sampled after.
        num_sampled_ids: ids that were sampled.
    """

    def __init__(
        self,
        model: Any,
        shape: KeyValueShape,
        *,
        version: int,
        max_rows: int,
        max_context: int,
        prefix_ids: int,
    ) -> None:
        self.version = version
        self.prefixes = PrefixCache(prefix_ids)
        self.num_prefilled_ids = 0
        self.num_sampled_ids = 0
        self._model = model
        self._device = shape.device
        self._max_rows = max_rows
        self._cache = SlotCache(shape, max_rows=max_rows, max_length=max_context)
        self._waiting: deque[Request] = deque()
        self._rows: list[Request] = []
        self._settings: RowSettings | None = None  # of the rows; None: to be collected anew
        self._num_gathering = 0  # decode steps for which newcomers have waited

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        return bool(self._rows or self._waiting)

    @property
    def requests(self) -> tuple[Request, ...]:
        """All that are not answered, running ones first."""
        return (*self._rows, *self._waiting)

    def add(self, request: Request) -> None:
        """Let a request wait for the next step."""
        self._waiting.append(request)

    def step(self) -> None:
        """Drop who was cancelled, let in who waits, sample one id for each row.

        Raises:
            EngineError: the weights give no finite logits.
        """
        for row in reversed(range(len(self._rows))):
            if self._rows[row].cancelled:
                self._remove(row)
        if self._is_time_to_join():
            while joining := self._next_wave():
                self._join(joining)
        if self._rows:
            self._decode()

    def publish(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Swap the weights; running sequences go on under the new ones.

        Raises:
            EngineError: ``version`` does not rise.
        """
        if version <= self.version:
            raise EngineError(f"version {version} does not rise above {self.version}")
        swap_weights(self._model, weights)
        # Keys and values of the old weights say nothing under the new ones.
        self.prefixes.clear()
        for request in self._rows:
            request.close_segment(self.version)
        self._waiting.extendleft(reversed(self._rows))
        self._rows.clear()
        self._settings = None
        self.version = version

    def _is_time_to_join(self) -> bool:
        """Whether who waits joins now: a pass for one costs nearly as much as for several."""
        enough = len(self._waiting) * GATHER_SHARE >= len(self._rows)
        if not self._waiting or enough or self._num_gathering >= GATHER_STEPS:
            self._num_gathering = 0
            return True
        self._num_gathering += 1
        return False

    def _next_wave(self) -> list[_Joining]:
        """Who joins in one go; siblings of theirs come in the next wave and copy from them."""
        joining: list[_Joining] = []
        later: list[Request] = []
        while self._waiting and len(self._rows) + len(joining) + len(later) < self._max_rows:
            request = self._waiting.popleft()
            if request.cancelled:
                continue
            joined = self._find_known(request)
            ids = request.prompt
            shared = max((common_length(j.request.prompt, ids) for j in joining), default=0)
            if shared >= joined.known + WORTH_WAITING:
                later.append(request)
            else:
                joining.append(joined)
        self._waiting.extendleft(reversed(later))
        # Neighbours of like length waste little padding.
        return sorted(joining, key=lambda j: j.missing)

    def _find_known(self, request: Request) -> _Joining:
        ids = as_ids(request.ids[:-1])
        known, kv = self.prefixes.longest(ids)
        donor = None
        # Siblings of a group share their prompt with a row that is still running.
        for row, other in enumerate(self._rows):
            common = min(common_length(other.prompt, ids), len(other.ids) - 1)
            if common > known:
                known, kv, donor = common, None, row
        return _Joining(request=request, known=known, kv=kv, donor=donor)

    def _join(self, joining: list[_Joining]) -> None:
        first = len(self._rows)
        self._rows += [j.request for j in joining]
        self._settings = None
        self._cache.reserve(len(self._rows), max(len(r.ids) for r in self._rows))
        for row, joined in enumerate(joining, start=first):
            if joined.donor is not None:
                self._cache.copy_row(joined.donor, row, joined.known)
            elif joined.kv is not None:
                self._cache.load_row(row, joined.kv)
        for start, end in _groups([j.missing for j in joining]):
            self._prefill(first + start, joining[start:end])

    def _prefill(self, first: int, group: list[_Joining]) -> None:
        longest = max(j.missing for j in group)
        width = min(longest, max(1, PREFILL_IDS // len(group)))
        spare = self._cache.spare_position
        for offset in range(0, longest, width):
            ids, positions, length = [], [], 1
            for joined in group:
                start = joined.known + offset
                end = min(start + width, joined.known + joined.missing)
                padding = width - max(0, end - start)
                ids.append(joined.request.ids[start:end] + [0] * padding)
                positions.append([*range(start, end), *[spare] * padding])
                length = max(length, end)
                self.num_prefilled_ids += width - padding
            self._forward(first, ids, positions, length, wants_logits=False)

    def _decode(self) -> None:
        lengths = [len(request.ids) for request in self._rows]
        longest = max(lengths)
        self._cache.reserve(len(self._rows), longest)
        logits_RV = self._forward(
            0,
            [[request.ids[-1]] for request in self._rows],
            [[length - 1] for length in lengths],
            longest,
            wants_logits=True,
        )
        if self._settings is None:
            self._settings = RowSettings.of([r.sampling for r in self._rows], self._device)
        uniforms = [request.draw() for request in self._rows]
        ids, logprobs = sample(logits_RV, self._settings, uniforms)
        if not math.isfinite(sum(logprobs)):
            raise EngineError(f"the weights of version {self.version} give no finite logits")
        self.num_sampled_ids += len(ids)
        # From the end, so that closing a gap moves only rows that were looked at.
        for row in reversed(range(len(self._rows))):
            request = self._rows[row]
            reason = request.append(ids[row], logprobs[row])
            if reason is not None:
                self._keep_prefix(row)
                self._remove(row)
                request.finish(reason, self.version)

    def _forward(
        self,
        first: int,
        ids: list[list[int]],
        positions: list[list[int]],
        length: int,
        *,
        wants_logits: bool,
    ) -> Tensor:
        positions_RT = torch.tensor(positions, device=self._device)
        mask = self._cache.aim(first, positions_RT, length)
        model = self._model if wants_logits else self._model.base_model
        output = model(
            input_ids=torch.tensor(ids, device=self._device),
            attention_mask=mask,
            position_ids=positions_RT,
            past_key_values=self._cache,
            use_cache=True,
        )
        result: Tensor = output.logits[:, -1] if wants_logits else output.last_hidden_state
        return result

    def _keep_prefix(self, row: int) -> None:
        ids = as_ids(self._rows[row].ids[:-1])
        if self.prefixes.wants(ids):
            self.prefixes.store(ids, self._cache.save_row(row, len(ids)))

    def _remove(self, row: int) -> None:
        last = len(self._rows) - 1
        if row != last:
            self._cache.copy_row(last, row, len(self._rows[last].ids))
            self._rows[row] = self._rows[last]
        self._rows.pop()
        self._settings = None


def _groups(lengths: list[int]) -> Iterator[tuple[int, int]]:
    """Cut rising lengths into ranges whose padded size stays in bounds; zeros are left out."""
    starts = [i for i, length in enumerate(lengths) if length > 0][:1]
    for i in range(starts[0] + 1 if starts else 0, len(lengths)):
        if starts and (i + 1 - starts[-1]) * lengths[i] > PREFILL_IDS:
            starts.append(i)
    if starts:
        yield from pairwise([*starts, len(lengths)])
