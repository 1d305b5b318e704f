"""Checks of the machine itself: versions, sandboxes, images, disks, GPU, hub."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from importlib import metadata
from pathlib import Path

import httpx

import palestra
from palestra.config import Recipe
from palestra.environment.sandboxes.choose import choose_backend
from palestra.environment.sandboxes.images import ImageStore
from palestra.environment.sandboxes.limits import mechanism_in_use
from palestra.errors import PalestraError
from palestra.run.doctor.findings import Finding, bad, good, note
from palestra.run.places import images_folder, state_folder

LOW_DISK_BYTES = 20 << 30
HUB_TIMEOUT_S = 5.0
NEWEST_PYTHON = (3, 13)
_GIB = 1 << 30
_TRAINING = ("torch", "transformers", "safetensors", "renderers")


def versions() -> Iterator[Finding]:
    """Python, ours, and what training needs."""
    python = platform.python_version()
    if sys.version_info[:2] > NEWEST_PYTHON:
        newest = ".".join(map(str, NEWEST_PYTHON))
        yield note("python", f"{python}, which is newer than {newest}", f"use up to {newest}")
    else:
        yield good("python", python)
    agent = _version("mini-swe-agent")
    yield good("palestra", f"{palestra.__version__}, mini-swe-agent {agent}")
    missing = [name for name in _TRAINING if importlib.util.find_spec(name) is None]
    if missing:
        yield note(
            "training",
            f"not installed: {', '.join(missing)}; this machine can serve environments",
            "pip install 'palestra[train]' to train here",
        )
    else:
        yield good("training", ", ".join(f"{name} {_version(name)}" for name in _TRAINING))


async def sandboxes(recipe: Recipe) -> AsyncIterator[Finding]:
    """Each backend by a trial start, and what holds them to their limits."""
    works = []
    names = ("bubblewrap", "docker", "podman")
    section = recipe.sandbox
    for name in names:
        try:
            await choose_backend(
                section.model_copy(update={"backend": name}),
                state_dir=state_folder(),
                images=images_folder(),
            )
        except PalestraError as error:
            yield note(
                name, _line(error.message), _line(error.hint or "only if you want to use it")
            )
        else:
            works.append(name)
            yield good(name, "a trial sandbox started")
    if works:
        yield good("sandbox", f"auto takes {works[0]}")
    else:
        yield bad("sandbox", "none can be started", "see the lines above; or --sandbox local")
    mechanism = mechanism_in_use()
    if mechanism == "watchdog":
        yield note(
            "limits",
            "no cgroup may be made here: a watchdog looks at memory and processes",
            "delegate a cgroup (systemd-run --user --scope -p Delegate=yes …) for exact limits",
        )
    else:
        yield good("limits", mechanism)


def images(recipe: Recipe) -> Iterator[Finding]:
    """What is unpacked, and whether more can be fetched."""
    folder = recipe.sandbox.images or images_folder()
    yield good("images", f"{len(ImageStore(folder).names())} in {folder}")
    if shutil.which("skopeo") is None:
        yield note(
            "skopeo",
            "not installed: bubblewrap cannot fetch images (docker and podman fetch their own)",
            "apt-get install skopeo",
        )
    else:
        yield good("skopeo", "installed")


def disks(recipe: Recipe) -> Iterator[Finding]:
    """Room where things are written."""
    places = {
        "images": recipe.sandbox.images or images_folder(),
        "sandboxes": state_folder(),
        "runs": Path(recipe.runs),
        "hub cache": Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser(),
    }
    for name, place in places.items():
        there = next(
            path for path in (place.absolute(), *place.absolute().parents) if path.exists()
        )
        free = shutil.disk_usage(there).free
        seen = f"{free / _GIB:.0f} GiB free for {place}"
        if not os.access(there, os.W_OK):
            yield bad(f"disk: {name}", f"{there} may not be written", "choose another folder")
        elif free < LOW_DISK_BYTES:
            yield note(f"disk: {name}", seen, "free some, or choose a folder on another disk")
        else:
            yield good(f"disk: {name}", seen)


async def gpu() -> Finding:
    """What torch and the driver see."""
    program = shutil.which("nvidia-smi")
    names: Sequence[str] = []
    if program is not None:
        names = await _lines(program, "--query-gpu=name,memory.total", "--format=csv,noheader")
    if names:
        return good("gpu", "; ".join(names))
    return note(
        "gpu", "none: the local engine and the trainer use the CPU", "enough for palestra demo"
    )


async def hub() -> Finding:
    """Whether weights and data sets can be fetched."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return note("hub", "HF_HUB_OFFLINE is set", "unset it to fetch models and data")
    try:
        from huggingface_hub.constants import ENDPOINT
    except ImportError:
        return note("hub", "its library is not installed", "pip install 'palestra[train]'")
    try:
        async with httpx.AsyncClient(timeout=HUB_TIMEOUT_S) as client:
            await client.head(ENDPOINT)
    except httpx.HTTPError as error:
        return note(
            "hub",
            f"{ENDPOINT} cannot be reached ({type(error).__name__})",
            "set HF_ENDPOINT or a proxy; local folders and files work without",
        )
    return good("hub", f"{ENDPOINT} answers")


async def _lines(*command: str) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(20):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return []
    return said.decode(errors="replace").strip().splitlines() if process.returncode == 0 else []


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "?"


def _line(text: str) -> str:
    return " ".join(text.split())
