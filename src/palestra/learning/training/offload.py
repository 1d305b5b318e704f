"""Gradients to the host and weights back, through memory that a GPU can reach by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class _Slot:
    """Room for one tensor on its way.

    Attributes:
        bytes_N: pinned where there is a GPU.
        done: recorded behind the copy that uses it; none on a CPU, where copies are at once.
    """

    bytes_N: torch.Tensor
    done: torch.cuda.Event | None

    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        """The room as a tensor of the same shape and dtype."""
        return self.bytes_N[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)

    def record(self) -> None:
        if self.done is not None:
            self.done.record()

    def wait(self) -> None:
        if self.done is not None:
            self.done.synchronize()


class HostTransfers:
    """Two slots in turn: one is copied while the other is worked on.

    Only these are pinned. Masters and moments never cross themselves, and the host's allocator
    rounds each pinned tensor up to a power of two.

    Args:
        weights: whose gradients come and which are sent; all on one device.
    """

    def __init__(self, weights: Iterable[torch.Tensor]) -> None:
        tensors = list(weights)
        num_bytes = max((tensor.nbytes for tensor in tensors), default=0)
        on_gpu = any(tensor.is_cuda for tensor in tensors)
        self._slots = tuple(
            _Slot(
                torch.empty(num_bytes, dtype=torch.uint8, pin_memory=on_gpu),
                torch.cuda.Event() if on_gpu else None,  # type: ignore[no-untyped-call]
            )
            for _ in range(2)
        )

    def to_host(self, tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield each tensor on the host, in its own dtype, until the next is asked for."""
        before: tuple[_Slot, torch.Tensor] | None = None
        for number, tensor in enumerate(tensors):
            slot = self._slots[number % 2]
            on_host = slot.like(tensor)
            on_host.copy_(tensor, non_blocking=True)
            slot.record()
            if before is not None:
                before[0].wait()
                yield before[1]
            before = slot, on_host
        if before is not None:
            before[0].wait()
            yield before[1]

    def to_device(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Copy (weight, master): each master, rounded on the host, into its weight."""
        for number, (weight, master) in enumerate(pairs):
            slot = self._slots[number % 2]
            slot.wait()
            on_host = slot.like(weight)
            on_host.copy_(master)
            weight.copy_(on_host, non_blocking=True)
            slot.record()
        for slot in self._slots:
            slot.wait()
