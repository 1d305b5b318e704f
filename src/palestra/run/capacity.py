"""What a native run needs of a GPU: its trainer, engines beside it, and what would need less."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from palestra.config import Recipe
from palestra.config_training import LoraSection
from palestra.learning.training.memory import (
    GIB,
    MemoryPart,
    ModelShape,
    TrainerMemory,
    trainer_memory,
)

_OFFLOAD = "training.offload_optimizer=true"
_LORA = "training.lora=true"
_OWN_DEFAULT_SHARE = 0.9  # about what engines take when they are not told
_BYTES = {"float32": 4, "bfloat16": 2}
_BESIDE_SHARE = 2 * GIB  # SGLang's share is of weights and cache; its graphs and CUDA come on top
_ENGINE_OVERHEAD = 1.15  # what an engine needs above its weights, before any conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Memory that is there; ``None``: not known, and nothing is refused.

    Attributes:
        gpu_bytes: of the GPU, of which engines take shares.
        free_bytes: of the GPU that nobody else holds.
        host_bytes: of the host that nobody else holds.
    """

    gpu_bytes: int | None = None
    free_bytes: int | None = None
    host_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityPlan:
    """What a run wants of the GPU that its trainer computes on.

    Attributes:
        machine: what there is.
        trainer: what one process of the trainer holds when it holds most.
        engines: on the same GPU.
        troubles: why it cannot run, each in a few words.
    """

    machine: Machine
    trainer: TrainerMemory
    engines: tuple[MemoryPart, ...]
    troubles: tuple[str, ...]

    @property
    def needed_bytes(self) -> int:
        """Of the GPU, trainer and engines together."""
        return self.trainer.gpu_bytes + sum(engine.num_bytes for engine in self.engines)

    def table(self) -> str:
        """Every part in a line of its own, in GiB."""
        rows = [("trainer", None), *((f"  {p.name}", p.num_bytes) for p in self.trainer.gpu)]
        rows += [(f"  most, at {self.trainer.moment}", self.trainer.gpu_bytes)]
        rows += [(engine.name, engine.num_bytes) for engine in self.engines]
        rows += [("needed of the GPU", self.needed_bytes)]
        if self.machine.free_bytes is not None:
            rows += [("free on the GPU", self.machine.free_bytes)]
        if self.trainer.host:
            rows += [("host", None), *((f"  {p.name}", p.num_bytes) for p in self.trainer.host)]
            rows += [("  needed of the host", self.trainer.host_bytes)]
        if self.trainer.host and self.machine.host_bytes is not None:
            rows += [("  free on the host", self.machine.host_bytes)]
        return "\n".join(_row(name, num_bytes) for name, num_bytes in rows)


def plan_capacity(recipe: Recipe, shape: ModelShape, machine: Machine) -> CapacityPlan:
    """Reckon what a recipe needs and whether the machine has it."""
    trainer = trainer_memory(
        shape, recipe.training, dtype=recipe.model.dtype, max_row_ids=longest_row(recipe)
    )
    engines = tuple(_engines(recipe, shape, machine))
    needed = trainer.gpu_bytes + sum(engine.num_bytes for engine in engines)
    troubles = list(_engine_troubles(recipe, shape, machine))
    if machine.free_bytes is not None and needed > machine.free_bytes:
        who = " and ".join(
            f"{name} {shown(num_bytes)}"
            for name, num_bytes in (
                ("the trainer", trainer.gpu_bytes),
                *((engine.name, engine.num_bytes) for engine in engines),
            )
        )
        troubles.append(
            f"about {shown(needed)} of GPU memory are needed ({who}), and "
            f"{shown(machine.free_bytes)} are free"
        )
    if machine.host_bytes is not None and trainer.host_bytes > machine.host_bytes:
        troubles.append(
            f"offloaded optimizer state needs {shown(trainer.host_bytes)} of the host's memory, "
            f"and {shown(machine.host_bytes)} are free"
        )
    return CapacityPlan(machine=machine, trainer=trainer, engines=engines, troubles=tuple(troubles))


def longest_row(recipe: Recipe) -> int:
    """Ids of the longest conversation that is trained on."""
    most = recipe.model.max_context
    return min(most, recipe.rollouts.max_row_tokens or most)


def _engines(recipe: Recipe, shape: ModelShape, machine: Machine) -> Iterator[MemoryPart]:
    """What engines hold of the trainer's GPU."""
    section, launch = recipe.engine, recipe.engine.launch
    number = _BYTES[recipe.model.dtype]
    if section.kind == "local":
        cache = recipe.model.max_context * _cache_bytes_per_id(shape, number)
        yield MemoryPart(name="local engine's weights", num_bytes=number * shape.num_weights)
        # It holds what conversations are long, not what they may be: one is sure to fit.
        yield MemoryPart(name="local engine's longest conversation", num_bytes=cache)
        return
    if launch is None or machine.gpu_bytes is None:
        return
    share = launch.memory_share or _OWN_DEFAULT_SHARE
    for server in range(launch.servers):
        first = launch.first_gpu + server * launch.tensor_parallel
        if _trainer_gpu(recipe) in range(first, first + launch.tensor_parallel):
            beside = _BESIDE_SHARE if section.kind == "sglang" else 0
            yield MemoryPart(
                name=f"{section.kind} server {server} (memory_share {share:g})",
                num_bytes=int(share * machine.gpu_bytes) + beside,
            )


def _engine_troubles(recipe: Recipe, shape: ModelShape, machine: Machine) -> Iterator[str]:
    launch = recipe.engine.launch
    if launch is None or machine.gpu_bytes is None:
        return
    has = int((launch.memory_share or _OWN_DEFAULT_SHARE) * machine.gpu_bytes)
    needs = _engine_bytes(recipe, shape)
    if has < needs:
        yield (
            f"engine.launch.memory_share leaves an engine {shown(has)}, and its weights with one "
            f"conversation of {recipe.model.max_context} ids need {shown(needs)}"
        )


def _engine_bytes(recipe: Recipe, shape: ModelShape) -> int:
    """What a launched engine must have at least, of each of its GPUs."""
    number = _BYTES[recipe.model.dtype]
    launch = recipe.engine.launch
    parallel = launch.tensor_parallel if launch else 1
    weights = number * shape.num_weights * _ENGINE_OVERHEAD
    cache = recipe.model.max_context * _cache_bytes_per_id(shape, number)
    return int((weights + cache) / parallel)


def _cache_bytes_per_id(shape: ModelShape, number: int) -> int:
    return 2 * shape.keys * shape.num_layers * number


def _trainer_gpu(recipe: Recipe) -> int:
    _, _, index = recipe.model.device.partition(":")
    return int(index or 0)


def find_remedy(
    recipe: Recipe, shape: ModelShape, machine: Machine
) -> tuple[str, CapacityPlan] | None:
    """The first change that mends it, or as many as it takes, as they are typed."""
    changes = tuple(_changes(recipe, shape, machine))
    for setting, change in changes:
        plan = plan_capacity(change(recipe), shape, machine)
        if not plan.troubles:
            return f"--set {setting}", plan
    changed = recipe
    settings: list[str] = []
    for setting, change in changes:
        changed = change(changed)
        if setting == _LORA:  # in place of it
            settings = [each for each in settings if _OFFLOAD not in each]
        settings.append(f"--set {setting}")
        plan = plan_capacity(changed, shape, machine)
        if not plan.troubles:
            return " ".join(settings), plan
    return None


Change = Callable[[Recipe], Recipe]


def _changes(recipe: Recipe, shape: ModelShape, machine: Machine) -> Iterator[tuple[str, Change]]:
    """Settings that need less, the cheapest first."""
    training, launch = recipe.training, recipe.engine.launch
    if recipe.model.dtype == "float32":
        yield "model.dtype=bfloat16", lambda r: _with(r, "model", dtype="bfloat16")
    if not training.activation_checkpointing:
        yield (
            "training.activation_checkpointing=true",
            lambda r: _with(r, "training", activation_checkpointing=True),
        )
    longest = longest_row(recipe)
    if training.microbatch_tokens > longest:
        yield (
            f"training.microbatch_tokens={longest}",
            lambda r: _with(r, "training", microbatch_tokens=longest),
        )
    if launch is not None and machine.gpu_bytes is not None:
        least = -(-_engine_bytes(recipe, shape) * 20 // machine.gpu_bytes) / 20  # in twentieths
        if least < 1 and least != launch.memory_share:
            enough = launch.model_copy(update={"memory_share": least})
            yield (
                f"engine.launch.memory_share={least:g}",
                lambda r: _with(r, "engine", launch=enough),
            )
    if training.lora is None:
        if not training.offload_optimizer:
            yield (
                _OFFLOAD,
                lambda r: _with(r, "training", offload_optimizer=True),
            )
        yield (
            _LORA,
            lambda r: _with(r, "training", lora=LoraSection(), offload_optimizer=False),
        )


def _with(recipe: Recipe, section: str, **values: object) -> Recipe:
    changed = getattr(recipe, section).model_copy(update=values)
    return recipe.model_copy(update={section: changed})


def _row(name: str, num_bytes: int | None) -> str:
    return name if num_bytes is None else f"{name:46} {num_bytes / GIB:8.1f} GiB"


def shown(num_bytes: int) -> str:
    """Bytes as people read them."""
    return f"{num_bytes / GIB:.1f} GiB"
