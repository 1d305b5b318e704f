"""AdamW over float32 master weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch

from palestra.errors import CheckpointError
from palestra.learning.training.offload import HostTransfers
from palestra.learning.training.ranks import as_sharded, whole_tensor

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class PolicyOptimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with gradient clipping.

    Weights of lower precision get float32 masters, gradients are summed there: a step of
    1e-6 is far below what bfloat16 resolves. Float32 weights are their own masters.

    Weight decay spares vectors (norms and biases set scales, not directions) and the
    input embedding: a batch of RL shows few ids, and decay would shrink the rows of all
    others step by step with nothing to hold against it.

    Args:
        model: whose parameters are trained.
        betas: of AdamW.
        weight_decay: decoupled, of matrices.
        offload: whether masters, moments and sums of gradients live in the host's memory, where
            AdamW then works. For weights on a CPU it changes no bit.
    """

    def __init__(
        self,
        model: Any,
        *,
        betas: tuple[float, float],
        weight_decay: float,
        offload: bool = False,
    ) -> None:
        self._weights: dict[str, torch.nn.Parameter] = {
            name: weight for name, weight in model.named_parameters() if weight.requires_grad
        }
        self._masters: dict[str, torch.Tensor] = {
            name: _master(weight, offload=offload) for name, weight in self._weights.items()
        }
        self._transfers = HostTransfers(self._weights.values()) if offload else None
        # Kept from step to step: fresh pages for billions of numbers take the host seconds.
        self._sums: dict[str, torch.Tensor] = {}
        embedding = model.get_input_embeddings().weight
        spared = {n for n, w in self._weights.items() if w.ndim < 2 or w is embedding}
        groups: list[dict[str, Any]] = [
            {"params": [m for n, m in self._masters.items() if n not in spared]},
            {"params": [m for n, m in self._masters.items() if n in spared], "weight_decay": 0.0},
        ]
        # Fused, since else a step on a GPU needs room for the moments' roots, all at once.
        self._adamw = torch.optim.AdamW(
            groups, lr=0.0, betas=betas, weight_decay=weight_decay, fused=True
        )

    def accumulate(self) -> None:
        """Add the gradients of the last backward pass to the masters' (call after each)."""
        names = [
            name
            for name, weight in self._weights.items()
            if weight.grad is not None and self._masters[name] is not weight
        ]
        for name, gradient in zip(names, self._gradients(names), strict=True):
            master = self._masters[name]
            if master.grad is None:
                master.grad = self._sum(name, gradient)
            else:
                master.grad.add_(gradient)
            self._weights[name].grad = None

    def step(self, *, lr: float, max_grad_norm: float) -> float:
        """Clip, step and forget the gradients; return the norm before clipping.

        A norm that is not finite changes no weight and no moment.
        """
        total = torch.nn.utils.clip_grad_norm_(self._masters.values(), max_grad_norm)
        norm = float(whole_tensor(total))
        if math.isfinite(norm):
            for group in self._adamw.param_groups:
                group["lr"] = lr
            self._adamw.step()
            self._publish()
        self.forget_gradients()
        return norm

    def forget_gradients(self) -> None:
        """Drop every gradient, as after a pass that failed."""
        for tensor in (*self._weights.values(), *self._masters.values()):
            tensor.grad = None

    def reset(self) -> None:
        """Forget all moments and take the model's present weights as masters."""
        self._adamw.state.clear()
        with torch.no_grad():
            for weight, master in self._copies():
                master.copy_(weight)

    def state_dict(self) -> dict[str, Any]:
        """Masters and moments by parameter name, whole; hyperparameters are the recipe's.

        Where several processes hold parts of them, all must ask.
        """
        return {
            "shapes": {name: list(master.shape) for name, master in self._masters.items()},
            # Those of float32 weights are equal to them.
            "masters": {
                name: whole_tensor(master.detach())
                for name, master in self._masters.items()
                if self._weights[name].dtype != torch.float32
            },
            "moments": {
                name: {key: whole_tensor(self._adamw.state[master][key]) for key in _MOMENTS}
                for name, master in self._masters.items()
                if master in self._adamw.state
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave for a model of the same parameters.

        Raises:
            CheckpointError: it belongs to other parameters or another precision.
        """
        ours = self.state_dict()
        if state.get("shapes") != ours["shapes"]:
            raise CheckpointError("the optimizer's state belongs to a model of other parameters")
        if set(state["masters"]) != set(ours["masters"]):
            raise CheckpointError("the optimizer's state belongs to weights of another dtype")
        with torch.no_grad():
            for name, master in self._masters.items():
                saved = state["masters"].get(name)
                master.copy_(self._weights[name] if saved is None else as_sharded(saved, master))
        self._adamw.state.clear()
        for name, moments in state["moments"].items():
            if set(moments) != set(_MOMENTS):
                raise CheckpointError(f"the optimizer's state of {name} is not AdamW's")
            master = self._masters[name]
            self._adamw.state[master] = {
                key: (value if key == "step" else as_sharded(value, master)).to(
                    master.device, copy=True
                )
                for key, value in moments.items()
            }

    def _copies(self) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
        return [
            (weight, self._masters[name])
            for name, weight in self._weights.items()
            if self._masters[name] is not weight
        ]

    def _gradients(self, names: Iterable[str]) -> Iterator[torch.Tensor]:
        """Where the masters are, one by one, so that each can go before the next comes."""
        found = (cast("torch.Tensor", self._weights[name].grad) for name in names)
        return found if self._transfers is None else self._transfers.to_host(found)

    def _sum(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        """The first gradient of a step, in float32 beside the master."""
        if self._transfers is None:
            return gradient.float()
        if name not in self._sums:
            self._sums[name] = torch.empty_like(self._masters[name], requires_grad=False)
        return self._sums[name].copy_(gradient)

    def _publish(self) -> None:
        with torch.no_grad():
            if self._transfers is not None:
                self._transfers.to_device(self._copies())
                return
            for weight, master in self._copies():
                weight.copy_(master)


def _master(weight: torch.nn.Parameter, *, offload: bool) -> torch.Tensor:
    device = torch.device("cpu") if offload else weight.device
    if weight.dtype == torch.float32 and weight.device == device:
        return weight
    return weight.detach().to(device, torch.float32, copy=True).requires_grad_()
