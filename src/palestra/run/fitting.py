"""A native run held against the machine that it would run on, before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from palestra.config import ModelSection, Recipe
from palestra.errors import ConfigError
from palestra.learning.training.lora import choose_targets
from palestra.learning.training.memory import GIB, ModelShape
from palestra.learning.training.model import choose_device
from palestra.learning.training.shape import model_shape
from palestra.run.capacity import CapacityPlan, Machine, find_remedy, plan_capacity, shown
from palestra.run.engine_servers import refuse_tied
from palestra.run.policy import DEMO, TINY, find_model


def check_capacity(recipe: Recipe, say: Callable[[str], None]) -> None:
    """Refuse a run that the engine or the GPU that it would compute on cannot do.

    Args:
        recipe: of the native backend.
        say: told in one line what is needed, where there is a GPU.

    Raises:
        ConfigError: it cannot be done; the hint says what to change.
    """
    if _is_tiny(recipe.model):
        return
    device = choose_device(recipe.model.device)
    if device.type != "cuda" and recipe.engine.launch is None:
        return
    shape = suitable_shape(recipe)
    if device.type != "cuda":
        return
    machine = machine_of(device)
    plan = plan_capacity(recipe, shape, machine)
    try:
        require_fit(plan, recipe, shape)
    except ConfigError as error:
        if recipe.training.memory_check == "refuse":
            raise
        say(f"it will likely not fit: {error}")
        return
    free = machine.free_bytes or 0
    say(f"about {shown(plan.needed_bytes)} of {shown(free)} of free GPU memory will be needed")


def planned_capacity(recipe: Recipe, *, gpu_gib: float | None) -> CapacityPlan | None:
    """Reckon a run without starting anything; ``None``: its model is tiny and fits anywhere.

    Args:
        recipe: of the native backend.
        gpu_gib: memory of a GPU to plan for; ``None``: the one of this machine, if it has one.

    Raises:
        ConfigError: there is no such model, or the engine or the adapters do not take it.
    """
    if _is_tiny(recipe.model):
        return None
    if gpu_gib is None:
        machine = machine_of(choose_device(recipe.model.device))
    else:
        machine = Machine(gpu_bytes=int(gpu_gib * GIB), free_bytes=int(gpu_gib * GIB))
    return plan_capacity(recipe, suitable_shape(recipe), machine)


def require_fit(plan: CapacityPlan, recipe: Recipe, shape: ModelShape | None = None) -> None:
    """Raise what is wrong with a plan, with the changes of the recipe that mend it.

    Raises:
        ConfigError: something is.
    """
    if not plan.troubles:
        return
    found = find_remedy(recipe, shape or suitable_shape(recipe), plan.machine)
    hint = (
        "no setting makes it fit: a larger GPU, or shorter conversations (model.max_context, "
        "rollouts.max_row_tokens)"
    )
    if found is not None:
        settings, mended = found
        hint = f"{settings} (then about {shown(mended.needed_bytes)})"
    raise ConfigError("; ".join(plan.troubles), hint=hint)


def suitable_shape(recipe: Recipe) -> ModelShape:
    """The shape of a recipe's model; of the hub, only its config.json is fetched.

    Raises:
        ConfigError: there is no such model, or the engine or the adapters do not take it.
    """
    folder = _config_folder(recipe.model.path)
    shape = model_shape(folder)
    if recipe.engine.kind == "vllm":
        refuse_tied(folder)
    if recipe.training.lora is not None:
        names = [each.name for each in shape.linears]
        choose_targets(names, recipe.training.lora.targets, of=recipe.model.path)
    return shape


def machine_of(device: torch.device) -> Machine:
    """The memory of a GPU and of its host; of anything else nothing is known."""
    if device.type != "cuda":
        return Machine()
    free, total = torch.cuda.mem_get_info(device)
    return Machine(gpu_bytes=total, free_bytes=free, host_bytes=free_host_bytes())


def free_host_bytes() -> int | None:
    """Memory of the host that this process may still take; ``None``: the system does not say."""
    limits = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                limits += [int(line.split()[1]) << 10]
        group = Path("/sys/fs/cgroup")
        most = (group / "memory.max").read_text(encoding="ascii").strip()
        if most != "max":
            limits.append(int(most) - int((group / "memory.current").read_text(encoding="ascii")))
    except (OSError, ValueError):
        pass
    return min(limits, default=None)


def _config_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir() or name == DEMO or folder.is_absolute() or name.startswith("."):
        return find_model(name)
    return _config_from_hub(name)


def _config_from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, "config.json")).parent
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"model.path: {name!r} is neither a folder nor to be had from the hub: {line}"
        ) from error


def _is_tiny(section: ModelSection) -> bool:
    return section.path.partition("?")[0] == TINY
