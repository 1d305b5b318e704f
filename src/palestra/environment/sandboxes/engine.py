"""The backend over a container engine's API: Docker, and Podman through its service.

One container is one sandbox: no capabilities, no network, limits by the engine, but for
the disk (:mod:`~palestra.environment.sandboxes.engine_limits`).
"""

from __future__ import annotations

import asyncio
import io
import posixpath
import resource
import secrets
import tarfile
import tempfile
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palestra.environment.sandboxes.arguments import HOSTNAME
from palestra.environment.sandboxes.engine_api import EngineApi, EngineKind, open_engine
from palestra.environment.sandboxes.engine_channel import EngineChannel
from palestra.environment.sandboxes.engine_limits import EngineLimits
from palestra.environment.sandboxes.engine_prepared import (
    Labelling,
    PreparedImage,
    PreparedImages,
    drop_outdated,
    image_id,
)
from palestra.environment.sandboxes.engine_pull import EnginePulls
from palestra.environment.sandboxes.engine_sandbox import EngineSandbox
from palestra.environment.sandboxes.engine_shell import Ready, shell_arguments
from palestra.environment.sandboxes.history import (
    HIDING_LIMITS,
    hide_future,
    verify,
    wants_hiding,
)
from palestra.environment.sandboxes.launch import uninterrupted
from palestra.environment.sandboxes.owners import is_gone, this_owner
from palestra.environment.sandboxes.protocol import OnProgress, Sandbox, SandboxSpec
from palestra.environment.sandboxes.repository import write_repository
from palestra.errors import (
    HostError,
    ImageError,
    SandboxDied,
    SandboxError,
    SandboxStartError,
    SandboxUnavailable,
)
from palestra.records import HOST_IMAGE

OWNER_LABEL = "palestra.owner"
"""Says which process a container belongs to; once that is dead, the container is reaped."""

_CHECK_TIMEOUT_S = 30.0
_ULIMITS = (
    ("nofile", resource.RLIMIT_NOFILE, 65_536),
    ("nproc", resource.RLIMIT_NPROC, 32_768),
)
_NEEDED = ("git", "python3", "base64")
_GIT_SETTINGS = (
    b"[user]\n\tname = root\n\temail = root@sandbox\n"
    b"[init]\n\tdefaultBranch = main\n[safe]\n\tdirectory = *\n"
)


class EngineBackend:
    """Starts containers.

    Args:
        kind: Docker or Podman.
        host_image: the image of tasks that carry their repository; with bash, git and
            python3.
        start_timeout_s: seconds to start one sandbox.
    """

    def __init__(self, kind: EngineKind, *, host_image: str, start_timeout_s: float = 60.0) -> None:
        self._kind = kind
        self._host_image = host_image
        self._start_timeout_s = start_timeout_s
        self._pulls = EnginePulls()
        self._hiding = PreparedImages()
        self._reaping = asyncio.Lock()
        self._has_reaped = False

    @property
    def name(self) -> str:
        """``docker`` or ``podman``."""
        return self._kind.name

    async def check(self) -> None:
        """Prove by a trial start in the host image that sandboxes work.

        Raises:
            SandboxUnavailable: they do not; says why and what to do.
        """
        missing = f"for p in {' '.join(_NEEDED)}; do command -v $p >/dev/null || echo $p; done"
        try:
            async with self.start(SandboxSpec(image=HOST_IMAGE, workdir="/tmp")) as sandbox:
                done = await sandbox.run(missing, timeout_s=_CHECK_TIMEOUT_S)
        except SandboxUnavailable:
            raise
        except SandboxError as error:
            raise SandboxUnavailable(str(error)) from error
        if done.exit_code != 0 or done.timed_out:
            raise SandboxUnavailable(f"a trial sandbox answered {done.output[:200]!r}")
        if done.output:
            raise SandboxUnavailable(
                f"the image {self._host_image} lacks {', '.join(done.output.split())}",
                hint="set sandbox.host_image to one with bash, git and python3",
            )

    async def ensure_image(self, image: str, on_progress: OnProgress) -> None:
        """Let the engine pull ``image`` where it does not have it.

        Raises:
            ImageError: it is unknown, refused or broken.
            HostError: the engine's disk is full.
            SandboxUnavailable: there is no engine.
        """
        if image == HOST_IMAGE:
            return
        async with open_engine(self._kind) as api:
            await self._pulls.ensure(api, image, on_progress)

    async def identify(self, image: str) -> str:
        """The engine's id of ``image``.

        Raises:
            ImageError: the engine does not have it.
        """
        async with open_engine(self._kind) as api:
            return await image_id(api, self._named(image))

    async def prepare(self, spec: SandboxSpec) -> None:
        """Make the image that hides what came after ``spec.base_commit``, if there is none.

        Raises:
            ImageError: the engine lacks the image, or its repository does not hold the commit.
            SandboxUnavailable: there is no engine.
        """
        if wants_hiding(spec):
            async with open_engine(self._kind) as api:
                await self._prepared(api, spec)

    @asynccontextmanager
    async def start(self, spec: SandboxSpec) -> AsyncIterator[Sandbox]:
        """Start a container; leaving the context removes it.

        Raises (on entry):
            ImageError: the engine has no image ``spec.image``, or it has no shell.
            UnverifiedHistory: the repository may show more than ``spec.base_commit``.
            SandboxStartError: it did not come up.
            SandboxUnavailable: there is no engine.
        """
        if not spec.workdir.startswith("/"):
            raise SandboxStartError(f"the working directory {spec.workdir!r} is not absolute")
        async with open_engine(self._kind) as api:
            await self._reap_once(api)
            prepared = await self._prepared(api, spec) if wants_hiding(spec) else None
            launch = _Launch(api, sandbox_id=secrets.token_hex(6))
            image = self._named(spec.image) if prepared is None else prepared.image_id
            try:
                sandbox = await self._in_time(launch.start(image, spec))
                if prepared is not None:
                    await verify(sandbox, prepared.seal, str(spec.base_commit))
                yield sandbox
            finally:
                await uninterrupted(launch.stop())

    def _named(self, image: str) -> str:
        return self._host_image if image == HOST_IMAGE else image

    async def _prepared(self, api: EngineApi, spec: SandboxSpec) -> PreparedImage:
        async def build(name: str, labels: Labelling) -> None:
            bare = SandboxSpec(image=spec.image, workdir=spec.workdir, limits=HIDING_LIMITS)
            launch = _Launch(api, sandbox_id=secrets.token_hex(6))
            try:
                sandbox = await self._in_time(launch.start(spec.image, bare))
                seal = await hide_future(sandbox, str(spec.base_commit), spec.setup_patch)
                await launch.keep(name, labels(seal))
            finally:
                await uninterrupted(launch.stop())

        return await self._hiding.get(api, spec, build)

    async def _in_time(self, starting: Coroutine[Any, Any, EngineSandbox]) -> EngineSandbox:
        try:
            async with asyncio.timeout(self._start_timeout_s):
                return await starting
        except TimeoutError:
            raise SandboxStartError(
                f"the sandbox did not come up in {self._start_timeout_s:g} s"
            ) from None

    async def _reap_once(self, api: EngineApi) -> None:
        async with self._reaping:
            if not self._has_reaped:
                await reap_containers(api)
                await drop_outdated(api)
                self._has_reaped = True


async def reap_containers(api: EngineApi) -> tuple[str, ...]:
    """Remove the containers of dead owners; return their ids."""
    reaped = []
    for container in await api.labelled(OWNER_LABEL):
        if is_gone(container.labels.get(OWNER_LABEL, "")):
            await api.remove(container.container_id)
            reaped.append(container.container_id)
    return tuple(reaped)


class _Launch:
    """One container from its creation to its removal."""

    def __init__(self, api: EngineApi, *, sandbox_id: str) -> None:
        self.sandbox_id = sandbox_id
        self._api = api
        self._name = f"palestra-{sandbox_id}"
        self._channel: EngineChannel | None = None

    async def keep(self, name: str, labels: Mapping[str, str]) -> None:
        """Keep what the container has changed as the image ``name``."""
        repo, _, tag = name.rpartition(":")
        await self._api.commit(self._name, repo=repo, tag=tag, labels=labels)

    async def start(self, image: str, spec: SandboxSpec) -> EngineSandbox:
        """Create and start the container, and wait for the shell in it."""
        user = await self._api.image_user(image)
        nonce = secrets.token_hex(8)
        arguments = shell_arguments(sandbox_id=self.sandbox_id, workdir=spec.workdir, nonce=nonce)
        settings = _settings(image, spec, arguments)
        # An engine that is left alone with this request may carry it out after the removal.
        container_id = await uninterrupted(self._api.create(self._name, settings))
        tar = await asyncio.to_thread(_files, spec, _numeric(user))
        if tar is not None:
            await self._api.upload(container_id, tar)
        stream = await self._api.attach(container_id)
        self._channel = EngineChannel(
            stream, nonce=nonce, kill_commands=lambda: self._api.signal(container_id, "SIGUSR2")
        )
        await self._api.start(container_id)
        try:
            ready = await self._channel.wait_ready()
        except SandboxDied as death:
            raise SandboxStartError(f"the sandbox did not come up: {death.message}") from None
        if ready is Ready.NO_WORKDIR:
            raise SandboxStartError(f"the image {image} has no directory {spec.workdir}")
        return EngineSandbox(
            sandbox_id=self.sandbox_id,
            workdir=spec.workdir,
            channel=self._channel,
            limits=EngineLimits(
                self._api,
                container_id,
                first_pid=await self._api.first_pid(container_id),
                limits=spec.limits,
            ),
        )

    async def stop(self) -> None:
        """Remove the container and close the stream; safe in any state."""
        try:
            await self._api.remove(self._name)
        finally:
            if self._channel is not None:
                await self._channel.aclose()


def _settings(image: str, spec: SandboxSpec, arguments: list[str]) -> dict[str, Any]:
    limits = spec.limits
    host: dict[str, Any] = {
        "AutoRemove": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "PidsLimit": limits.num_pids,
        "Memory": limits.memory_bytes,
        "MemorySwap": limits.memory_bytes,
        "Ulimits": [*_ulimits(), _ulimit("fsize", limits.disk_bytes)],
        # The engine would keep what commands print, on the disk and without end.
        "LogConfig": {"Type": "none"},
    }
    if not spec.network:
        host["NetworkMode"] = "none"
    if limits.cpus is not None:
        host["NanoCpus"] = int(limits.cpus * 1e9)
    return {
        "Image": image,
        "Entrypoint": arguments,
        "Cmd": [],
        "Env": [f"{name}={value}" for name, value in spec.env.items()],
        "WorkingDir": "/",
        "Hostname": HOSTNAME,
        "Labels": {OWNER_LABEL: this_owner()},
        # The shell ends when we do, and the container with it.
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "HostConfig": host,
    }


def _ulimits() -> list[dict[str, Any]]:
    """What the engine may surely grant: Podman's service else asks for more than some hosts do.

    The number of processes is limited by the container's cgroup, not by this.
    """
    limits = []
    for name, kind, most in _ULIMITS:
        hard = resource.getrlimit(kind)[1]
        limit = most if hard == resource.RLIM_INFINITY else min(hard, most)
        limits.append(_ulimit(name, limit))
    return limits


def _ulimit(name: str, most: int) -> dict[str, Any]:
    return {"Name": name, "Soft": most, "Hard": most}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ids:
    uid: int = 0
    gid: int = 0


def _numeric(user: str) -> _Ids:
    """The ids of an image's user, where they are numbers; a name counts as root."""
    uid, _, gid = user.partition(":")
    with suppress(ValueError):
        return _Ids(uid=int(uid), gid=int(gid or 0))
    return _Ids()


def _files(spec: SandboxSpec, ids: _Ids) -> bytes | None:
    """A tarball of the task's repository, made here: the image needs no git for it.

    Raises:
        ImageError: the files cannot all exist.
        HostError: they cannot be written.
    """
    if not spec.files and spec.image != HOST_IMAGE:
        return None
    target = io.BytesIO()
    with (
        tempfile.TemporaryDirectory(prefix="palestra-") as folder,
        tarfile.open(fileobj=target, mode="w") as tar,
    ):
        try:
            if spec.files:
                write_repository(Path(folder), spec.files)
                _add(tar, Path(folder), spec.workdir.strip("/"), ids)
        except ValueError as error:
            raise ImageError(f"the task's files make no repository: {error}") from None
        except OSError as error:
            raise HostError.from_os(error, doing="cannot write the task's files") from error
        if spec.image == HOST_IMAGE:
            _add_settings(tar)
    return target.getvalue()


def _add(tar: tarfile.TarFile, folder: Path, name: str, ids: _Ids) -> None:
    def owned(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid, info.gid = ids.uid, ids.gid
        info.uname = info.gname = ""
        if info.name == name:
            info.mode = 0o755
        return info

    tar.add(folder, name, filter=owned)


def _add_settings(tar: tarfile.TarFile) -> None:
    info = tarfile.TarInfo(posixpath.join("etc", "gitconfig"))
    info.size = len(_GIT_SETTINGS)
    info.mode = 0o644
    tar.addfile(info, io.BytesIO(_GIT_SETTINGS))
