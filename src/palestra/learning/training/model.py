"""A Hugging Face causal language model as a scorer of ids that can be saved and loaded."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging

from palestra.config import ModelSection
from palestra.config_training import LoraSection
from palestra.errors import CheckpointError, ConfigError
from palestra.learning.training.attention import Segment, Segments, use_packed_attention
from palestra.learning.training.batching import Microbatch
from palestra.learning.training.compiling import compile_regions
from palestra.learning.training.forward import score, states, stream_states
from palestra.learning.training.logprobs import TokenLogprobs
from palestra.learning.training.lora import ADAPTER, AdapterReference, Adapters
from palestra.learning.training.ranks import Ranks, as_sharded, whole_tensor
from palestra.learning.training.sharding import ShardedScorer

_TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template*",
    "generation_config.json",
)


class Reference(Protocol):
    """What a policy is held to: it scores ids and never changes."""

    def score(self, batch: Microbatch) -> TokenLogprobs:
        """Score the trained ids of a microbatch."""
        ...

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What makes it up."""
        ...

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what :meth:`state_dict` gave.

        Raises:
            RuntimeError: it is of another model.
        """
        ...


class Policy:
    """A causal model in evaluation mode: without dropout, as the engine runs it.

    Args:
        model: a Hugging Face causal language model whose logits are its output
            embedding applied to its last hidden state.
        layout: whether microbatches are padded or packed.
        activation_checkpointing: whether the backward pass computes layers anew. Padded rows
            then share no prefix, since keys and values of a prefix would have to be kept.
        adapters: of the model, if it has some.
        compiled: whether its norms and MLPs are compiled.
        ranks: the processes that hold the weights together; ``None``: this one alone.

    Attributes:
        shares_prefixes: whether rows may go on from a prefix that was computed once.

    Raises:
        ConfigError: the logits are something else (soft caps, logit scales), which the
            chunked log-probabilities would miss; packed rows would see each other; or the
            layers cannot be computed anew.
    """

    def __init__(
        self,
        model: Any,
        *,
        layout: Literal["padded", "packed"] = "padded",
        activation_checkpointing: bool = False,
        adapters: Adapters | None = None,
        compiled: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.model = model.eval()
        self._ranks = ranks or Ranks()
        self._layout = layout
        self._compiled = compiled
        self._adapters = adapters
        if layout == "packed":
            use_packed_attention(model)
            _check_packed(model)
        self.shares_prefixes = layout == "packed" or (
            not activation_checkpointing and _shares_prefixes(model)
        )
        _check_head(model)
        if activation_checkpointing:
            _checkpoint_layers(model)
        if compiled:
            compile_regions(model)
        self._sharded: ShardedScorer | None = None
        if self._ranks.size > 1:
            # A prefix that rows share would put each layer together twice in a pass.
            self.shares_prefixes = layout == "packed"
            self._sharded = ShardedScorer(model, score, self._ranks)

    @classmethod
    def load(
        cls,
        folder: Path,
        section: ModelSection,
        *,
        layout: Literal["padded", "packed"] = "padded",
        activation_checkpointing: bool = False,
        lora: LoraSection | None = None,
        compiled: bool = False,
        seed: int = 0,
        ranks: Ranks | None = None,
    ) -> Policy:
        """Load the weights of a Hugging Face folder; with ``lora``, only new adapters train.

        Raises:
            ConfigError: the folder holds no complete model, the device is not there, or the
                model has no layers such as the adapters want.
            MissingExtra: adapters need peft.
        """
        if not (folder / "config.json").is_file():
            raise ConfigError(f"there is no model in {folder}: it has no config.json")
        device = choose_device(section.device)
        try:
            model = _load(folder, getattr(torch, section.dtype))
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ConfigError(f"cannot load the model in {folder}: {_line(error)}") from error
        return cls(
            model.to(device),
            layout=layout,
            activation_checkpointing=activation_checkpointing,
            adapters=Adapters(model, lora, base=folder, seed=seed) if lora else None,
            compiled=compiled,
            ranks=ranks,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
        return device

    def score(self, batch: Microbatch, *, entropy_gradient: bool = False) -> TokenLogprobs:
        """Score the trained ids of a microbatch at the temperatures they were sampled at.

        Args:
            batch: the ids.
            entropy_gradient: whether gradients flow through the entropy too.
        """
        if self._sharded is None:
            return score(self.model, batch, entropy_gradient)
        logprobs_N, entropy_N = self._sharded(batch, entropy_gradient)
        if not torch.is_grad_enabled():
            # No backward pass comes that would take the outermost weights apart again.
            self._sharded.take_apart()
        return TokenLogprobs(logprobs_N=logprobs_N, entropy_N=entropy_N)

    def frozen_copy(self) -> Reference:
        """The policy as it is now, without gradients; of adapters, they alone are copied."""
        if self._adapters is not None:
            return AdapterReference(self, self._adapters)
        return Policy(
            copy.deepcopy(self.model).requires_grad_(False),
            layout=self._layout,
            compiled=self._compiled,
        )

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All weights by their names, whole; where several processes hold them, all must ask."""
        # One tensor for two names of a tied weight, as in the model.
        whole: dict[int, torch.Tensor] = {}
        named = dict(self.model.named_parameters(remove_duplicate=False))
        state = {}
        for name, tensor in self.model.state_dict().items():
            key = id(named.get(name, tensor))
            if key not in whole:
                whole[key] = whole_tensor(tensor)
            state[name] = whole[key]
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what :meth:`state_dict` gave.

        Raises:
            RuntimeError: it is of another model.
        """
        ours = self.model.state_dict()
        if set(ours) == set(state):
            state = {name: as_sharded(tensor, ours[name]) for name, tensor in state.items()}
        self.model.load_state_dict(state, strict=True)

    def write(self, folder: Path, *, tokenizer_from: Path) -> None:
        """Write config.json, model.safetensors and the tokenizer's files into ``folder``.

        Adapters are merged into the weights, for any engine, and stand in ``adapter/`` besides.
        Where several processes hold the weights, all must ask, and the first one writes.

        Raises:
            OSError, SafetensorError: the disk does not take them.
        """
        state = self._adapters.merged() if self._adapters else self.state_dict()
        if self._ranks.rank:
            return
        with _quietly():
            # One file, whatever its size: engines then read exactly model.safetensors.
            self.model.save_pretrained(folder, state_dict=state, max_shard_size="100TB")
        if self._adapters is not None:
            self._adapters.write(folder / ADAPTER)
        for pattern in _TOKENIZER_FILES:
            for path in tokenizer_from.glob(pattern):
                if path.is_file() and not (folder / path.name).exists():
                    shutil.copyfile(path, folder / path.name)

    def read(self, folder: Path) -> None:
        """Take over the weights of a folder that :meth:`write` wrote.

        Raises:
            CheckpointError: they are missing, broken or of another architecture.
        """
        if self._adapters is not None:
            self._adapters.read(folder / ADAPTER)
            return
        try:
            # Through from_pretrained, since names in the file need not be those in memory.
            weights = _load(folder, self.model.dtype).state_dict()
            self.load_state_dict(weights)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"cannot read weights from {folder}: {_line(error)}") from error


def _checkpoint_layers(model: Any) -> None:
    """Let the backward pass compute each layer anew from what entered it.

    Raises:
        ConfigError: the model has no layers that can do so.
    """
    layers = [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
    if not layers or not model.supports_gradient_checkpointing:
        raise ConfigError(
            f"{type(model).__name__} cannot compute its layers anew",
            hint="training.activation_checkpointing = false",
        )
    for layer in layers:
        # Set here, since the model's own method has another name in every other version.
        layer.gradient_checkpointing = True
        # Nothing draws random numbers, since dropout is off.
        again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        layer._gradient_checkpointing_func = again  # noqa: SLF001
        layer.training = True  # they ask for it; what is inside of them stays as it runs in engines


def _check_packed(model: Any) -> None:
    """Try it: recurrences and attention that ignores segments would see across rows."""
    first = Segment(start=0, length=2)
    own = Segment(start=2, length=2, prefix=first)
    stream = Segments.of((first, own, Segment(start=4, length=3)), device=model.device)
    contents = ([0, 1, 1, 0, 1, 0, 0], [0, 1, 1, 0, 0, 1, 1], [1, 0, 0, 1, 1, 0, 0])
    ids_S, other_end_S, other_start_S = torch.tensor(contents, device=model.device)
    try:
        with torch.no_grad():
            packed_SH, end_SH, start_SH = (
                stream_states(model, each_S[None], stream).float()
                for each_S in (ids_S, other_end_S, other_start_S)
            )
            alone = [states(model, ids_S[:0], part[None]) for part in (ids_S[:4], ids_S[4:])]
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{type(model).__name__} does not take packed rows: {_line(error)}",
            hint='training.layout = "padded"',
        ) from error
    apart = torch.allclose(packed_SH[:4], end_SH[:4], rtol=1e-3, atol=1e-3) and torch.allclose(
        packed_SH[4:], start_SH[4:], rtol=1e-3, atol=1e-3
    )
    # Another kernel at 16 bits may well differ by some percent, in all layers together.
    error_SH = packed_SH - torch.cat(alone).float()
    if not apart or error_SH.norm() > 0.1 * packed_SH.norm():
        raise ConfigError(
            f"the packed rows of {type(model).__name__} would see each other, or not all of "
            "themselves",
            hint='training.layout = "padded"',
        )


def _shares_prefixes(model: Any) -> bool:
    """Try it: caches of other kinds (linear attention, recurrences) cannot be handed on so."""
    row_T = torch.tensor([0, 1, 0], device=model.device)
    try:
        with torch.no_grad():
            whole_SH = states(model, row_T[:0], row_T[None]).float()
            shared_SH = states(model, row_T[:1], row_T[None, 1:].expand(2, 2)).float()
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return False
    again_SH = torch.cat([whole_SH, whole_SH[1:]])
    return torch.allclose(shared_SH, again_SH, rtol=2e-2, atol=2e-2)


def choose_device(name: str) -> torch.device:
    """Read ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` is CUDA where there is some.

    Raises:
        ConfigError: there is no such device.
    """
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"model.device: {name!r} is not a device") from None
    if device.type == "cuda" and (not has_cuda or (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(f"model.device: this machine has no {name}", hint="auto always works")
    return device


def _load(folder: Path, dtype: torch.dtype) -> Any:
    with _quietly():
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    # transformers fills what a file lacks with random numbers and only logs it.
    wrong = {key: sorted(map(str, info.get(key) or ())) for key in _LOADING_TROUBLE}
    if any(wrong.values()):
        raise ValueError("; ".join(f"{key}: {names[:3]}" for key, names in wrong.items() if names))
    return model


_LOADING_TROUBLE = ("missing_keys", "unexpected_keys", "mismatched_keys")


def _check_head(model: Any) -> None:
    ids_BT = torch.tensor([[0, 1]], device=model.device)
    with torch.no_grad():
        hidden_BTH = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
        ours_BTV = model.get_output_embeddings()(hidden_BTH).float()
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits.float()
    if not torch.allclose(ours_BTV, logits_BTV, rtol=1e-3, atol=1e-3):
        raise ConfigError(
            f"{type(model).__name__} changes its logits after the output embedding, "
            "which training does not support"
        )


@contextmanager
def _quietly() -> Iterator[None]:
    # Progress bars of single loads would run into the run's own display.
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
