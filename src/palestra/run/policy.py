"""The policy side of a run: which model, and the gateway in front of an engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, nullcontext
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from palestra.addresses import LOOPBACK
from palestra.config import ModelSection, Recipe
from palestra.errors import ConfigError
from palestra.policy.engines.local import LocalEngine
from palestra.policy.engines.protocol import Engine
from palestra.policy.gateway import Gateway, Ledger, SpillFolder, running_gateway
from palestra.policy.rendering import load_renderer
from palestra.policy.tiny import make_tiny_model
from palestra.records import SamplingParams, Task
from palestra.tasks.katas import demonstration

TINY = "tiny"
DEMO = "demo"
SIZES = {"hidden_size", "num_layers", "vocab_size"}


def model_folder(section: ModelSection, start: Path, tasks: Iterable[Task], seed: int) -> Path:
    """The Hugging Face folder that a run starts from; a tiny model is made at ``start``.

    Raises:
        ConfigError: the folder or the hub's model is not there, or a size is wrong.
    """
    name, _, query = section.path.partition("?")
    if name == TINY:
        if not (start / "config.json").exists():
            make_tiny_model(start, texts=_texts(tasks), seed=seed, **_sizes(query))
        return start
    return find_model(section.path)


def find_model(name: str) -> Path:
    """The Hugging Face folder of a model: a folder, the demo policy, or one of the hub.

    Raises:
        ConfigError: it is none of these.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name == DEMO:
        return Path(str(files("palestra.policy") / "demo_policy"))
    if folder.is_absolute() or name.startswith("."):
        raise ConfigError(f"model.path: there is no folder {name}")
    return _from_hub(name)


def local_engine(folder: Path, recipe: Recipe, *, version: int = 0) -> LocalEngine:
    """The local engine on a Hugging Face folder of ``version``; an async context manager."""
    return LocalEngine(
        folder,
        section=recipe.engine,
        max_context=recipe.model.max_context,
        device=recipe.model.device,
        dtype=recipe.model.dtype,
        version=version,
    )


@asynccontextmanager
async def serving(
    engine: Engine,
    tokenizer: Any,
    recipe: Recipe,
    *,
    name: str,
    host: str = LOOPBACK,
    spill: Path | None = None,
) -> AsyncIterator[str]:
    """Serve ``engine`` through a gateway on ``host``; yields its root URL.

    Where ``spill`` names a folder, turns beyond ``gateway.memory_mib`` are kept there.
    """
    renderer = load_renderer(recipe.model.renderer, tokenizer)
    with nullcontext() if spill is None else SpillFolder(spill) as opened:
        gateway = Gateway(
            engine,
            renderer,
            tokenizer,
            model_name=name,
            max_context=recipe.model.max_context,
            defaults=SamplingParams(
                temperature=recipe.sampling.temperature,
                top_p=recipe.sampling.top_p,
                max_new_tokens=recipe.sampling.max_new_tokens,
            ),
            ledger=Ledger(renderer, max_memory_bytes=recipe.gateway.memory_mib << 20, spill=opened),
        )
        async with running_gateway(
            gateway, host=host, port=recipe.gateway.port, public_url=recipe.gateway.public_url
        ) as url:
            yield url


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a Hugging Face folder, without asking the hub."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _sizes(query: str) -> dict[str, int]:
    try:
        sizes = {key: int(value) for key, value in parse_qsl(query, strict_parsing=bool(query))}
    except ValueError:
        sizes = {query: 0}
    if unknown := set(sizes) - SIZES:
        raise ConfigError(
            f"model.path: {', '.join(unknown)} is no size of a tiny model",
            hint="tiny?" + "&".join(f"{name}=N" for name in sorted(SIZES)),
        )
    return sizes


def _texts(tasks: Iterable[Task]) -> Iterable[str]:
    for task in tasks:
        yield task.problem_statement
        yield from (file.text for file in task.files)
        yield from demonstration(task) if task.files else ()


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, ignore_patterns=["*.bin", "*.gguf", "*.pth"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"model.path: {name!r} is neither a folder nor to be had from the hub: {line}"
        ) from error
