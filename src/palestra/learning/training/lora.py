"""Low-rank adapters inside of a model: what trains, what engines get, what users take away."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from palestra.config_training import ALL_LINEAR, LoraSection
from palestra.errors import CheckpointError, ConfigError, MissingExtra

if TYPE_CHECKING:
    from palestra.learning.training.batching import Microbatch
    from palestra.learning.training.logprobs import TokenLogprobs
    from palestra.learning.training.model import Policy

ADAPTER = "adapter"
"""Folder of the adapters, inside of the Hugging Face folder that they are merged into."""

_WEIGHTS = "adapter_model.safetensors"
_BASE = "base_sha256"
_NAME = "default"
_OUTER = "base_model.model."  # what peft's own wrapper puts before the names of the model
_SAMPLED_PER_TENSOR = 1024


class Adapters:
    """Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) of a model, by peft.

    A layer with the weight W computes ``(W + alpha / rank * B A) x``. Only A and B train; B
    begins as 0, so the model begins as it was. Nothing is ever merged in place: adding and
    taking away again would leave other weights than before.

    Args:
        model: a Hugging Face causal language model; its linear layers are replaced.
        section: rank, scale and layers.
        base: the folder that the model is of; named in what users take away.
        seed: of A.

    Raises:
        ConfigError: the model has no such layers.
        MissingExtra: peft is not installed.
    """

    def __init__(self, model: Any, section: LoraSection, *, base: Path, seed: int) -> None:
        peft = _peft()
        self._model = model
        targets = choose_targets(_linear_layers(model), section.targets, of=type(model).__name__)
        self._config = peft.LoraConfig(
            r=section.rank,
            lora_alpha=section.alpha,
            lora_dropout=0.0,
            target_modules=targets,
            bias="none",
            task_type="CAUSAL_LM",
            base_model_name_or_path=str(base),
            inference_mode=False,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            peft.inject_adapter_in_model(self._config, model, adapter_name=_NAME)
        # peft makes a set of them, which would be written in another order by each process.
        self._config.target_modules = sorted(targets)
        self._layers = [
            each for each in model.modules() if isinstance(each, peft.tuners.lora.LoraLayer)
        ]
        self._scaling = section.alpha / section.rank

    @property
    def weights(self) -> dict[str, torch.nn.Parameter]:
        """The adapters' own weights by their names in the model."""
        return {n: w for n, w in self._model.named_parameters() if ".lora_" in n}

    def copy(self) -> dict[str, torch.Tensor] | None:
        """The adapters as they are now; ``None`` while they change nothing (B is 0)."""
        weights = self.weights
        if not any(bool(w.any()) for n, w in weights.items() if ".lora_B." in n):
            return None
        return {name: weight.detach().clone() for name, weight in weights.items()}

    @contextmanager
    def replaced_by(self, weights: Mapping[str, torch.Tensor] | None) -> Iterator[None]:
        """Let the model compute with other adapters, or without any (``None``), for a while.

        Gradients that are still to be computed are those of the present ones.
        """
        own = self.weights
        kept = {name: weight.data for name, weight in own.items()}
        self._turn(on=weights is not None)
        try:
            # By .data, which autograd does not take for a change of what it has saved.
            for name in weights or ():
                own[name].data = weights[name] if weights else kept[name]
            yield
        finally:
            for name, weight in own.items():
                weight.data = kept[name]
            self._turn(on=True)

    def merged(self) -> dict[str, torch.Tensor]:
        """The state of the model without adapters that computes what this one computes.

        Merged in float32, rounded once to the precision of the weights; the merged ones are
        on the CPU and the trained state stays as it is.
        """
        return merged_state(self._model.state_dict(), scaling=self._scaling)

    def write(self, folder: Path) -> None:
        """Write what peft reads, adapter_model.safetensors and adapter_config.json.

        Raises:
            OSError, SafetensorError: the disk does not take them.
        """
        folder.mkdir(exist_ok=True)
        self._config.save_pretrained(str(folder))
        tensors = {
            _outside(name): weight.detach().cpu().contiguous()
            for name, weight in self.weights.items()
        }
        metadata = {"format": "pt", _BASE: _fingerprint(self._model)}
        save_file(tensors, folder / _WEIGHTS, metadata=metadata)

    def read(self, folder: Path) -> None:
        """Take over what :meth:`write` wrote for adapters of the same kind on the same base.

        Raises:
            CheckpointError: it is missing, broken, of another kind or of another base.
        """
        path = folder / _WEIGHTS
        try:
            with safe_open(path, framework="pt") as file:
                base = (file.metadata() or {}).get(_BASE)
                saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read the adapters in {path}: {error}") from error
        if base != _fingerprint(self._model):
            raise CheckpointError(f"the adapters in {path} belong to other base weights")
        own = {_outside(name): weight for name, weight in self.weights.items()}
        if {n: w.shape for n, w in own.items()} != {n: t.shape for n, t in saved.items()}:
            raise CheckpointError(f"the adapters in {path} have another rank or other layers")
        with torch.no_grad():
            for name, weight in own.items():
                weight.copy_(saved[name])

    def _turn(self, *, on: bool) -> None:
        for layer in self._layers:
            layer.enable_adapters(on)


class AdapterReference:
    """The policy as it was at one moment, without a second copy of the model.

    Args:
        policy: whose base weights it uses.
        adapters: of the policy.
    """

    def __init__(self, policy: Policy, adapters: Adapters) -> None:
        self._policy = policy
        self._adapters = adapters
        self._weights = adapters.copy()

    def score(self, batch: Microbatch) -> TokenLogprobs:
        """Score as the policy did then; takes no gradients."""
        with torch.no_grad(), self._adapters.replaced_by(self._weights):
            return self._policy.score(batch)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The adapters of then; empty: there were none."""
        return dict(self._weights or {})

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what :meth:`state_dict` gave.

        Raises:
            RuntimeError: it is of other adapters.
        """
        own = self._adapters.weights
        shapes = {name: weight.shape for name, weight in own.items()}
        if state and {name: tensor.shape for name, tensor in state.items()} != shapes:
            raise RuntimeError("its adapters have another rank or other layers")
        moved = {name: tensor.to(own[name], copy=True) for name, tensor in state.items()}
        self._weights = moved or None


def merged_state(state: Mapping[str, torch.Tensor], *, scaling: float) -> dict[str, torch.Tensor]:
    """The state of a model without adapters from that of one with them.

    Args:
        state: of a model whose layers carry adapters.
        scaling: what ``B A`` is multiplied by.

    Returns:
        Weights by the names that they have without adapters: ``W + scaling * B A``, computed
        in float32, in W's dtype on the CPU; all others as they are.
    """
    merged = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        layer, is_adapted, leaf = name.rpartition(".base_layer.")
        if is_adapted and leaf == "weight":
            a_RI, b_OR = (state[f"{layer}.lora_{x}.{_NAME}.weight"].float() for x in "AB")
            sum_OI = tensor.float() + scaling * (b_OR @ a_RI)
            merged[f"{layer}.{leaf}"] = sum_OI.to("cpu", tensor.dtype)
        else:
            merged[f"{layer}.{leaf}" if is_adapted else name] = tensor
    return merged


def choose_targets(linear: Iterable[str], wanted: tuple[str, ...], *, of: str) -> list[str]:
    """What peft is to call the linear layers that are adapted.

    Args:
        linear: dotted names of all linear layers but the output embedding.
        wanted: their ends, or ``all-linear``.
        of: what model has them, for messages.

    Raises:
        ConfigError: a name is of none.
    """
    names = tuple(linear)
    known = sorted({name.rpartition(".")[2] for name in names})
    if not known:
        raise ConfigError(
            f"training.lora: {of} has no linear layers to adapt",
            hint="train all weights: leave out [training.lora]",
        )
    if ALL_LINEAR in wanted:
        return known
    unknown = [w for w in wanted if not any(n == w or n.endswith(f".{w}") for n in names)]
    if unknown:
        raise ConfigError(
            f"training.lora.targets: {', '.join(unknown)} is no linear layer of {of}; "
            f"there are {', '.join(known)}"
        )
    return list(wanted)


def _linear_layers(model: Any) -> Iterator[str]:
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            yield name


def _outside(name: str) -> str:
    return _OUTER + name.replace(f".{_NAME}.", ".")


def _fingerprint(model: Any) -> str:
    """Of evenly spaced values of every frozen weight; all of them would take seconds a save."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if ".lora_" not in name:
            every = max(1, weight.numel() // _SAMPLED_PER_TENSOR)
            values_N = weight.detach().reshape(-1)[::every].float().cpu()
            own = name.replace(".base_layer", "")
            digest.update(f"{own} {tuple(weight.shape)} {weight.dtype}".encode())
            digest.update(values_N.numpy().tobytes())
    return digest.hexdigest()


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise MissingExtra.named("train", needed_for="training.lora", module="peft") from None
    return peft
