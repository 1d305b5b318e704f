"""Weights from a Hugging Face folder: loading a model, and new weights for a loaded one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from palestra.errors import ConfigError, EngineError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


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


def load_model(folder: Path, *, device: torch.device, dtype: torch.dtype) -> Any:
    """Load a causal language model for inference.

    Raises:
        ConfigError: the folder holds no complete model in safetensors files.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(f"there is no model in {folder}: it has no config.json")
    try:
        with _quietly():
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, attn_implementation="sdpa"
            )
        # transformers fills what a file lacks with random numbers and only logs it; and
        # a folder whose names differ from the model's could not be published later.
        _check_names(folder, _locate(folder), model)
    except (OSError, ValueError, RuntimeError, SafetensorError, EngineError) as error:
        raise ConfigError(f"cannot load the model in {folder}: {_line(error)}") from error
    return model.to(device).eval().requires_grad_(False)


def read_weights(folder: Path, model: Any) -> dict[str, Tensor]:
    """Read the weights of ``folder`` and check that ``model`` can take them.

    Returns:
        One tensor per parameter in the model's own type, in main memory; of
        parameters that share theirs, only the first.

    Raises:
        EngineError: they are missing, broken, or of another architecture.
    """
    try:
        locations = _locate(folder)
        _check_names(folder, locations, model)
        return dict(_read(folder, locations, model))
    except (OSError, ValueError, SafetensorError) as error:
        raise EngineError(f"cannot read weights from {folder}: {_line(error)}") from error


def swap_weights(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Overwrite the weights of ``model`` with what :func:`read_weights` gave for it."""
    state = model.state_dict()
    for name, tensor in weights.items():
        state[name].copy_(tensor)


def _locate(folder: Path) -> dict[str, Path]:
    """Each tensor's name → the file that holds it."""
    index = folder / _INDEX
    if (folder / _SINGLE).is_file() or not index.is_file():
        with safe_open(folder / _SINGLE, framework="pt") as file:
            return dict.fromkeys(file.keys(), folder / _SINGLE)
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return {name: folder / Path(file).name for name, file in names.items()}


def _check_names(folder: Path, locations: Mapping[str, Path], model: Any) -> None:
    groups = _sharing(model)
    known = {name for group in groups for name in group}
    missing = [group[0] for group in groups if not any(name in locations for name in group)]
    unknown = [name for name in locations if name not in known]
    if missing or unknown:
        said = [f"{len(missing)} weights missing, first {missing[0]}"] if missing else []
        said += [f"{len(unknown)} unknown, first {unknown[0]}"] if unknown else []
        raise EngineError(f"the weights in {folder} are of another model: {'; '.join(said)}")


def _read(folder: Path, locations: Mapping[str, Path], model: Any) -> Iterator[tuple[str, Tensor]]:
    state = model.state_dict()
    for path in sorted(set(locations.values())):
        with safe_open(path, framework="pt") as file:
            for group in _sharing(model):
                name = next(n for n in group if n in locations)
                if locations[name] != path:
                    continue
                tensor, target = file.get_tensor(name), state[group[0]]
                if tensor.shape != target.shape:
                    raise EngineError(
                        f"{name} in {folder} has shape {tuple(tensor.shape)}, "
                        f"the model's is {tuple(target.shape)}"
                    )
                # A copy, since the tensor may be a window on a file that goes away.
                yield group[0], tensor.to(dtype=target.dtype, copy=True)


def _sharing(model: Any) -> list[list[str]]:
    """Names of the model's tensors, those of one and the same memory together."""
    groups: dict[int, list[str]] = {}
    for name, tensor in model.state_dict().items():
        groups.setdefault(tensor.data_ptr(), []).append(name)
    return list(groups.values())


@contextmanager
def _quietly() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
