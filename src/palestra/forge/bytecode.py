"""The bytecode of what a project needs, made by its image's own Python in a sandbox."""

from __future__ import annotations

import asyncio
import io
import posixpath
import re
import tarfile
from pathlib import Path

from palestra.environment.sandboxes.protocol import SandboxBackend, SandboxLimits, SandboxSpec
from palestra.errors import HostError, TaskError

_TIMEOUT_S = 300.0
_LIMITS = SandboxLimits(memory_bytes=1 << 30, num_pids=64, disk_bytes=512 << 20)
_MAX_BYTES = 256 << 20
_PACKED = "/tmp/caches.tar"
_CACHE = re.compile(r"(?P<stem>[^/]+)\.[a-z]+-?[0-9]+\.pyc")


async def add_bytecode(backend: SandboxBackend, image: str, site: str, folder: Path) -> None:
    """Compile the packages in ``site`` of an image, and put their caches into ``folder``.

    Without it every test run would compile pytest anew, which takes longer than most tests. It
    holds nothing of the project, which is not in ``site``.

    Args:
        backend: of the sandbox.
        image: in which the packages are.
        site: where, absolute.
        folder: the same folder on this machine.

    Raises:
        TaskError: the packages keep it from being compiled.
        HostError: it cannot be written.
        InfraError: the sandbox failed.
    """
    spec = SandboxSpec(image=image, workdir="/", limits=_LIMITS)
    async with backend.start(spec) as sandbox:
        done = await sandbox.run(
            f"cd {site} && python3 -I -m compileall -q --invalidation-mode unchecked-hash . ; "
            f"find . -name __pycache__ -print0 | tar --null -T - -cf {_PACKED}",
            timeout_s=_TIMEOUT_S,
        )
        if done.exit_code != 0:
            raise TaskError(f"compiling what it needs failed: {done.output.strip()[-200:]!r}")
        try:
            packed = await sandbox.read_file(_PACKED, max_bytes=_MAX_BYTES)
        except (FileNotFoundError, ValueError) as error:
            raise TaskError(f"compiling what it needs gave no bytecode: {error}") from None
    await asyncio.to_thread(take_caches, packed, folder)


def take_caches(packed: bytes, site: Path) -> None:
    """Take the caches of the modules of ``site`` out of a tarball, and nothing else.

    Whoever packed it was in a sandbox with code of strangers.

    Raises:
        TaskError: it is no plain tarball.
        HostError: a file cannot be written.
    """
    modules = {path.relative_to(site).as_posix() for path in site.rglob("*.py")}
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as archive:
            for member in archive:
                name = posixpath.normpath(member.name)
                if not (member.isreg() and not member.issparse() and _module(name) in modules):
                    continue
                data = archive.extractfile(member)
                assert data is not None
                _write(site / name, data.read())
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise TaskError(f"compiling what it needs gave no tarball: {error}") from None
    except OSError as error:
        raise HostError.from_os(error, doing="cannot keep bytecode") from error


def _module(name: str) -> str | None:
    """The module whose cache has that path; ``None``: it is the path of no cache."""
    parent, _, base = name.rpartition("/")
    folder, _, caches = f"/{parent}".rpartition("/")
    found = _CACHE.fullmatch(base)
    if found is None or caches != "__pycache__":
        return None
    return posixpath.join(folder.removeprefix("/"), f"{found['stem']}.py")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(data)
