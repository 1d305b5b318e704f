"""What a process of a run stood on: its command, versions and machine."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("palestra", "torch", "transformers", "mini-swe-agent")
_SECRETS = ("environment.token",)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """Facts about one process of a run.

    Attributes:
        command: as it was typed, without secrets.
        versions: of Python and of the packages that matter, as ``name version``.
        system: operating system and architecture.
        processor: its model, as the system names it.
        num_cpus: that this process may use.
        memory_bytes: of the machine; ``None`` when the system does not say.
        accelerators: names of the GPUs that PyTorch sees.
    """

    command: str
    versions: tuple[str, ...]
    system: str
    processor: str
    num_cpus: int
    memory_bytes: int | None
    accelerators: tuple[str, ...] = ()


def gather_facts(arguments: Sequence[str], *, accelerators: Sequence[str] = ()) -> RunFacts:
    """Look around.

    Args:
        arguments: of the command line, the program's name left out.
        accelerators: names of the GPUs in use.
    """
    return RunFacts(
        command=shlex.join(["palestra", *map(_without_secret, arguments)]),
        versions=(f"python {platform.python_version()}", *map(_version, PACKAGES)),
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        processor=_processor(),
        num_cpus=_num_cpus(),
        memory_bytes=_memory_bytes(),
        accelerators=tuple(accelerators),
    )


def _without_secret(argument: str) -> str:
    # The command lands in a page that people hand around.
    head, equals, _ = argument.rpartition("=")
    is_secret = equals and head.removeprefix("--set=").strip() in _SECRETS
    return f"{head}=…" if is_secret else argument


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} none"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _num_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None
