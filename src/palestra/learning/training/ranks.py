"""Several processes that train one policy: who does what, and what they tell each other.

All of them see the same groups and cut the same microbatches from them; each runs its share,
and what it found is told to all. So every process takes the same decisions, and the first may
speak for the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared(Generic[T]):
    """One item of a process's share.

    Attributes:
        index: in the sequence that is shared out.
        item: the entry there.
        is_extra: whether another process counts it: it is worked on so that all processes do
            equally many collective operations, and its outcome must count for nothing.
    """

    index: int
    item: T
    is_extra: bool


class Ranks:
    """The processes that train together, seen from one of them.

    Args:
        mesh: of one dimension over all of them, from an initialised process group; ``None``: one
            process alone.
    """

    def __init__(self, mesh: DeviceMesh | None = None) -> None:
        self.mesh = mesh
        self.rank = 0 if mesh is None else mesh.get_local_rank()
        self.size = 1 if mesh is None else mesh.size()

    def share(self, items: Sequence[T]) -> list[Shared[T]]:
        """This process's share of what all have; every process gets equally many.

        Raises:
            ValueError: there is nothing to share out.
        """
        if not items:
            raise ValueError("there is nothing to share out")
        num_each = -(-len(items) // self.size)
        own = range(self.rank, num_each * self.size, self.size)
        return [
            Shared(
                index=min(index, len(items) - 1),
                item=items[min(index, len(items) - 1)],
                is_extra=index >= len(items),
            )
            for index in own
        ]

    def gather(self, found: Mapping[int, T]) -> list[T]:
        """What all processes found, in the order of the indices they found it under."""
        parts: list[Any] = [None] * self.size
        if self.mesh is None:
            parts = [found]
        else:
            dist.all_gather_object(parts, dict(found), group=self.mesh.get_group())
        whole = {index: value for part in parts for index, value in part.items()}
        return [whole[index] for index in sorted(whole)]


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor of which this process may hold a part; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def as_sharded(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor, cut as ``like`` is; every process must give the same."""
    if not isinstance(like, DTensor):
        return tensor
    # Each cuts its own part: nothing is sent.
    return distribute_tensor(
        tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )
