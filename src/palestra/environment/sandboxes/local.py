"""The local backend: commands in a temporary folder, as the caller, without isolation.

For machines on which nothing else can start. A model's commands may read and change
whatever the caller may; time-outs and ``ulimit`` are the only bounds. It is never chosen
without being named.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from palestra.environment.sandboxes.launch import uninterrupted
from palestra.environment.sandboxes.local_sandbox import LocalSandbox
from palestra.environment.sandboxes.marked import MARK, kill_marked
from palestra.environment.sandboxes.owners import is_gone, this_owner
from palestra.environment.sandboxes.protocol import OnProgress, Sandbox, SandboxSpec
from palestra.environment.sandboxes.repository import write_repository
from palestra.errors import HostError, ImageError, SandboxError, SandboxUnavailable
from palestra.records import HOST_IMAGE

_CHECK_TIMEOUT_S = 30.0
_OWNER_FILE = "owner"
_STARTUP_FILES = ("BASH_ENV", "ENV")
_GIT_SETTINGS = (
    "[user]\n\tname = root\n\temail = root@sandbox\n"
    "[init]\n\tdefaultBranch = main\n[safe]\n\tdirectory = *\n"
)


class LocalBackend:
    """Starts folders that are treated as sandboxes.

    Args:
        state_dir: the folders lie in ``local`` below it, each with its owner's name, so
            that the next server removes what a killed one left.
    """

    def __init__(self, *, state_dir: Path) -> None:
        self._folder = state_dir.absolute() / "local"
        self._reaping = asyncio.Lock()
        self._has_reaped = False

    @property
    def name(self) -> str:
        """``local``."""
        return "local"

    async def check(self) -> None:
        """Prove that bash and git answer.

        Raises:
            SandboxUnavailable: they do not.
            HostError: the state folder cannot be written.
        """
        try:
            async with self.start(SandboxSpec(image=HOST_IMAGE, workdir="/")) as sandbox:
                done = await sandbox.run(
                    "git --version >/dev/null && echo works", timeout_s=_CHECK_TIMEOUT_S
                )
        except SandboxError as error:
            raise SandboxUnavailable(f"the local backend does not work here: {error}") from error
        if done.output != "works\n":
            raise SandboxUnavailable(
                f"the local backend needs git: {done.output.strip()[:200]}", hint="install git"
            )

    async def ensure_image(self, image: str, on_progress: OnProgress) -> None:
        """There are no images to fetch."""

    async def identify(self, image: str) -> str:
        """``host``, whatever the image."""
        return "host"

    async def prepare(self, spec: SandboxSpec) -> None:
        """There are no images, and so nothing to hide in them."""

    @asynccontextmanager
    async def start(self, spec: SandboxSpec) -> AsyncIterator[Sandbox]:
        """Make a folder with the files of ``spec``; leaving the context removes it.

        Raises (on entry):
            ImageError: ``spec`` wants an image, or its files make no repository.
            HostError: the folder cannot be written.
        """
        if spec.image != HOST_IMAGE:
            raise ImageError(
                f"the local backend has no images, and the task wants {spec.image}",
                hint="use bubblewrap, docker or podman for it",
            )
        await self._reap_once()
        sandbox_id = secrets.token_hex(6)
        root = self._folder / sandbox_id
        sandbox = LocalSandbox(
            sandbox_id=sandbox_id,
            root=root,
            env={**_environment(root), **_without_startup_files(spec.env), MARK: sandbox_id},
            limits=spec.limits,
        )
        try:
            _lay_out(root, spec)
            yield sandbox
        finally:
            await uninterrupted(_remove(sandbox, root))

    async def _reap_once(self) -> None:
        async with self._reaping:
            if not self._has_reaped:
                await reap_local(self._folder)
                self._has_reaped = True


async def reap_local(folder: Path) -> tuple[str, ...]:
    """Remove the sandboxes of dead owners and their processes; return their ids."""
    reaped = []
    for root in _abandoned(folder):
        await kill_marked(root.name)
        _delete(root)
        reaped.append(root.name)
    return tuple(reaped)


def _abandoned(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    for root in list(folder.iterdir()):
        with suppress(OSError):
            if root.name.isalnum() and is_gone((root / _OWNER_FILE).read_text()):
                yield root


def _lay_out(root: Path, spec: SandboxSpec) -> None:
    try:
        root.mkdir(parents=True, mode=0o700)
        (root / _OWNER_FILE).write_text(this_owner())
        for name in ("work", "home", "tmp"):
            (root / name).mkdir()
        (root / "home" / ".gitconfig").write_text(_GIT_SETTINGS)
        if spec.files:
            write_repository(root / "work", spec.files)
    except OSError as error:
        raise HostError.from_os(error, doing="cannot make a local sandbox") from error
    except ValueError as error:
        raise ImageError(f"the task's files make no repository: {error}") from None


def _without_startup_files(env: Mapping[str, str]) -> dict[str, str]:
    """They are meant to be an image's; here they would be the host's, read at every command."""
    return {name: value for name, value in env.items() if name not in _STARTUP_FILES}


def _environment(root: Path) -> dict[str, str]:
    """Nothing of the caller's but where programs are."""
    return {
        "PATH": f"{sys.base_prefix}/bin{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "HOME": str(root / "home"),
        "TMPDIR": str(root / "tmp"),
        "LANG": "C.UTF-8",
        # Without its own .git, git would take a repository around the state folder.
        "GIT_CEILING_DIRECTORIES": f"{root}{os.pathsep}{root.parent}",
    }


async def _remove(sandbox: LocalSandbox, root: Path) -> None:
    try:
        await sandbox.stop()
    finally:
        _delete(root)


def _delete(root: Path) -> None:
    # Twice: a process that dies may have made a file meanwhile.
    for _ in range(2):
        shutil.rmtree(root, ignore_errors=True)
    # What the agent's diff and the grader keep there is named by the sandbox's id.
    for left in Path(tempfile.gettempdir()).glob(f"palestra-{root.name}*"):
        with suppress(OSError):
            left.unlink()
