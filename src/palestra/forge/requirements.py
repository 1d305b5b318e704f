"""What a project and its tests need, as unpacked wheels; none of it is run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from palestra.errors import HostError, TaskError
from palestra.forge.base import Base
from palestra.forge.metadata import Metadata

_PYTEST = Requirement("pytest>=7,<9")
_PIP_TIMEOUT_S = 600.0


def install(
    metadata: Metadata,
    base: Base,
    site: Path,
    *,
    own_name: str,
    unfit: Callable[[], str],
    say: Callable[[str], None],
) -> None:
    """Unpack the wheels of all requirements into ``site``; as few as it must be.

    Args:
        metadata: names them.
        base: the system that they shall run on.
        site: an existing folder, which is emptied first.
        own_name: of the project, of which no copy stays.
        unfit: says why what was installed cannot stay, or nothing.
        say: told of what is left out.

    Raises:
        TaskError: not even the project's own requirements can be had as wheels, or may stay.
        HostError: pip cannot be run.
        OSError: a file cannot be removed.
    """
    problem = ""
    for left_out, wanted in _choices(metadata):
        shutil.rmtree(site)
        site.mkdir()
        problem = _pip(wanted, base, site)
        if not problem:
            _drop(own_name, site)
            problem = unfit()
        if not problem:
            if left_out:
                say(f"{own_name}: without what its tests ask for: {left_out}")
            break
    else:
        raise TaskError(f"{own_name}: what it needs cannot be installed: {problem}")
    shutil.rmtree(site / "bin", ignore_errors=True)  # programs for this machine's Python
    for cache in site.rglob("__pycache__"):
        shutil.rmtree(cache)


def installed(site: Path, own_name: str) -> tuple[str, ...]:
    """What lies in ``site`` beside the project, each ``name==version``."""
    found = []
    for info in site.glob("*.dist-info"):
        name, _, version = info.name.removesuffix(".dist-info").rpartition("-")
        if canonicalize_name(name) != own_name:
            found.append(f"{canonicalize_name(name)}=={version}")
    return tuple(sorted(found))


def joined(
    said: Sequence[Requirement], imported: Sequence[Requirement], own_name: str
) -> tuple[Requirement, ...]:
    """What the tests ask for, and what they import without asking."""
    names = {own_name, *(canonicalize_name(one.name) for one in said)}
    return (*said, *(one for one in imported if canonicalize_name(one.name) not in names))


def _choices(metadata: Metadata) -> Iterator[tuple[str, list[Requirement]]]:
    """What is left out, and what is installed, from all to the least."""
    own, tests = list(metadata.requirements), list(metadata.test_requirements)
    yield "", [*own, *tests, _PYTEST]
    plugins = [one for one in tests if one.name.lower().startswith("pytest")]
    yield ", ".join(one.name for one in tests if one not in plugins), [*own, *plugins, _PYTEST]
    yield ", ".join(one.name for one in tests), [*own, _PYTEST]


def _pip(wanted: Sequence[Requirement], base: Base, site: Path) -> str:
    """Install; what went wrong, in a line, or nothing."""
    minor = base.python.replace(".", "")
    command = [
        *(sys.executable, "-P", "-m", "pip", "install", "--quiet", "--no-input", "--no-compile"),
        *("--target", str(site), "--only-binary", ":all:", "--implementation", "cp"),
        *("--python-version", base.markers["python_full_version"], "--abi", f"cp{minor}"),
        *("--abi", "abi3", "--abi", "none", "--upgrade"),
        *(word for tag in _platforms(base) for word in ("--platform", tag)),
        *map(str, wanted),
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"pip cannot be run: {error}") from error
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return (
        "" if done.returncode == 0 else (lines or [done.stderr.strip()[-200:] or "pip failed"])[-1]
    )


def _platforms(base: Base) -> list[str]:
    """The tags of wheels that run there, the newest first."""
    machine = base.markers["platform_machine"]
    try:
        newest = int(base.glibc.split(".")[1])
    except (IndexError, ValueError):
        return ["any", f"musllinux_1_2_{machine}", f"musllinux_1_1_{machine}"]
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, 4, -1)]
    return ["any", *tags, f"manylinux2014_{machine}", f"manylinux1_{machine}"]


def _drop(own_name: str, site: Path) -> None:
    """Remove a copy of the project itself, which something else may have asked for."""
    for info in sorted(site.glob("*.dist-info")):
        name = info.name.removesuffix(".dist-info").rpartition("-")[0]
        if canonicalize_name(name) != own_name:
            continue
        for line in (info / "RECORD").read_text("utf-8").splitlines():
            path = site / line.rsplit(",", 2)[0].strip('"')
            if path.is_file() and site in path.resolve().parents:
                path.unlink()
        shutil.rmtree(info, ignore_errors=True)
