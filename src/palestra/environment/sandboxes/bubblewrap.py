"""The bubblewrap backend: sandboxes without a daemon, on unpacked images or the host's userland."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from palestra.environment.images.pull import ImagePuller
from palestra.environment.sandboxes import processes
from palestra.environment.sandboxes.arguments import Bind, Blueprint, bwrap_command
from palestra.environment.sandboxes.bwrap import Bwrap, explain_failure, find_bwrap
from palestra.environment.sandboxes.history import (
    HIDING_LIMITS,
    Seal,
    hide_future,
    layer_key,
    verify,
    wants_hiding,
)
from palestra.environment.sandboxes.images import ImageStore, UnpackedImage
from palestra.environment.sandboxes.launch import (
    Launch,
    StartFailure,
    uninterrupted,
)
from palestra.environment.sandboxes.layers import LayerCache
from palestra.environment.sandboxes.limits import Limiter, find_limiter
from palestra.environment.sandboxes.prepared import (
    PreparedLayer,
    PreparedLayers,
    copy_written,
    identity_of,
)
from palestra.environment.sandboxes.protocol import OnProgress, Sandbox, SandboxSpec
from palestra.environment.sandboxes.reaper import Leases, reap
from palestra.environment.sandboxes.sandbox import BubblewrapSandbox
from palestra.environment.sandboxes.shell import MOUNT_POINT, shell_arguments
from palestra.environment.sandboxes.userland import (
    Userland,
    build_hosts_layer,
    build_skeleton,
    find_userland,
)
from palestra.errors import HostError, ImageError, SandboxStartError, SandboxUnavailable
from palestra.records import HOST_IMAGE

_NO_WORKDIR = 66  # as the shell's script says
_CHECK_TIMEOUT_S = 30.0
# bwrap walks all mounts of the host, and others mount and unmount while it does.
_MOUNT_WENT_AWAY = "Unable to apply mount flags"
_NUM_RETRIES = 2
_STARTS_AN_EVICTION = 512
_HIDDEN_AT_ONCE = 2  # images; each takes a core and memory
_IMAGE_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ground:
    """What a sandbox stands on."""

    layers: tuple[Path, ...]
    env: Mapping[str, str]
    shell: str
    binds: tuple[Bind, ...] = ()
    folders: tuple[str, ...] = ()
    ids: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tools:
    bwrap: Bwrap
    limiter: Limiter
    userland: Userland


class BubblewrapBackend:
    """Starts bubblewrap sandboxes.

    What a sandbox writes lives in memory and ends with it. Its disk limit is
    therefore the smaller of ``disk_bytes`` and half of ``memory_bytes``: a full disk
    must leave room to run, and fail as a full disk does.

    Args:
        store: the unpacked images; ``None``: only the host's userland.
        state_dir: leases and cached layers; one for all servers of a
            user, on a local file system.
        start_timeout_s: seconds to start one sandbox.
        puller: brings images into the store; ``None``: only those that are there.
        bwrap: the program; ``None``: found at the first use.
        limiter: the limits' mechanism; ``None``: found at the first use.
    """

    def __init__(
        self,
        *,
        store: ImageStore | None,
        state_dir: Path,
        start_timeout_s: float = 60.0,
        puller: ImagePuller | None = None,
        bwrap: Bwrap | None = None,
        limiter: Limiter | None = None,
    ) -> None:
        self._store = store
        self._puller = puller
        self._state_dir = state_dir.absolute()
        self._start_timeout_s = start_timeout_s
        self._bwrap = bwrap
        self._limiter = limiter
        self._leases = Leases(self._state_dir)
        self._layers = LayerCache(self._state_dir / "layers")
        self._preparing = asyncio.Lock()
        self._hiding = asyncio.Semaphore(_HIDDEN_AT_ONCE)
        self._tools: _Tools | None = None
        self._num_started = 0

    @property
    def name(self) -> str:
        """``bubblewrap``."""
        return "bubblewrap"

    async def check(self) -> None:
        """Prove by a trial start that sandboxes work on this machine.

        Raises:
            SandboxUnavailable: they do not; says why and what to do.
            HostError: the state folder cannot be written.
        """
        spec = SandboxSpec(image=HOST_IMAGE, workdir="/tmp")
        try:
            async with self.start(spec) as sandbox:
                result = await sandbox.run("echo works", timeout_s=_CHECK_TIMEOUT_S)
        except StartFailure as failure:
            raise (
                explain_failure(failure.stderr)
                or SandboxUnavailable(f"bubblewrap does not work here: {failure.message}")
            ) from None
        if result.output != "works\n":
            raise SandboxUnavailable(
                f"a trial sandbox answered {result.output[:200]!r} (exit {result.exit_code})"
            )

    async def ensure_image(self, image: str, on_progress: OnProgress) -> None:
        """Pull ``image`` into the store where it is not there yet.

        Raises:
            ImageError: it is unknown, refused or broken.
            HostError: the disk is or would be full, or there is no skopeo.
        """
        if image == HOST_IMAGE:
            return
        if self._puller is not None:
            await self._puller.ensure(image, on_progress)
        else:
            self._resolve(image)

    async def identify(self, image: str) -> str:
        """The digest of a pulled image; ``folder:…`` for a registered one; or ``host``.

        Raises:
            ImageError: it is not there.
        """
        return "host" if image == HOST_IMAGE else identity_of(self._resolve(image))

    async def prepare(self, spec: SandboxSpec) -> None:
        """Make the layer that hides what came after ``spec.base_commit``, if there is none.

        Raises:
            ImageError: the image is not there, or its repository does not hold the commit.
            HostError: the store cannot be written.
        """
        if wants_hiding(spec):
            await self._prepared(spec)

    @asynccontextmanager
    async def start(self, spec: SandboxSpec) -> AsyncIterator[Sandbox]:
        """Start a sandbox; leaving the context removes everything it made.

        Raises (on entry):
            ImageError: ``spec.image`` is unknown or broken.
            SandboxStartError: it did not come up.
            UnverifiedHistory: the repository may show more than ``spec.base_commit``.
            SandboxUnavailable: there is no usable bwrap.
            HostError: the state folder cannot be written.
        """
        tools = await self._prepare()
        prepared = await self._prepared(spec) if wants_hiding(spec) else None
        ground = self._ground(spec, tools.userland, prepared)
        async with AsyncExitStack() as stack:
            sandbox = await self._entered(stack, tools, spec, ground)
            if prepared is not None:
                await verify(sandbox, prepared.seal, str(spec.base_commit))
            yield sandbox

    async def _entered(
        self, stack: AsyncExitStack, tools: _Tools, spec: SandboxSpec, ground: _Ground
    ) -> BubblewrapSandbox:
        for _ in range(_NUM_RETRIES):
            try:
                return await stack.enter_async_context(self._launched(tools, spec, ground))
            except StartFailure as failure:
                if _MOUNT_WENT_AWAY not in failure.stderr:
                    raise
        return await stack.enter_async_context(self._launched(tools, spec, ground))

    @asynccontextmanager
    async def _launched(
        self, tools: _Tools, spec: SandboxSpec, ground: _Ground
    ) -> AsyncIterator[BubblewrapSandbox]:
        sandbox_id = secrets.token_hex(6)
        group = tools.limiter.group(sandbox_id, spec.limits)
        launch = self._open_launch(sandbox_id, ground, tuple(map(str, group.paths)))
        try:
            init_pid = await self._start(launch, tools, spec, ground, sandbox_id)
            group.admit(init_pid)
            yield BubblewrapSandbox(
                sandbox_id=sandbox_id,
                workdir=spec.workdir,
                channel=launch.channel,
                limits=group,
                init_pid=init_pid,
            )
        finally:
            await uninterrupted(launch.stop())

    async def _prepare(self) -> _Tools:
        """Find the tools and clear up after dead owners, once; bound the cached layers."""
        async with self._preparing:
            if self._tools is None:
                tools = _Tools(
                    bwrap=self._bwrap or find_bwrap(),
                    limiter=self._limiter or find_limiter(),
                    userland=find_userland(),
                )
                await reap(self._state_dir)
                self._tools = tools
            if self._num_started % _STARTS_AN_EVICTION == 0:
                self._layers.evict({key for lease in self._leases.all() for key in lease.layers})
            self._num_started += 1
            return self._tools

    def _open_launch(self, sandbox_id: str, ground: _Ground, cgroups: tuple[str, ...]) -> Launch:
        layers = tuple(layer.name for layer in ground.layers)
        try:
            lease = self._leases.open(sandbox_id=sandbox_id, layers=layers, cgroups=cgroups)
        except OSError as error:
            raise HostError.from_os(
                error, doing=f"cannot write the sandboxes' state in {self._state_dir}"
            ) from error
        return Launch(self._leases, lease, has_bash=ground.shell.endswith("bash"))

    async def _start(
        self, launch: Launch, tools: _Tools, spec: SandboxSpec, ground: _Ground, sandbox_id: str
    ) -> int:
        blueprint = Blueprint(
            layers=ground.layers,
            mount_point=self._leases.mount_point,
            name=sandbox_id,
            disk_bytes=min(spec.limits.disk_bytes, spec.limits.memory_bytes // 2),
            channel_target=MOUNT_POINT,
            binds=ground.binds,
            folders=ground.folders,
            env={**ground.env, **spec.env},
            uid=ground.ids[0],
            gid=ground.ids[1],
            network=spec.network,
        )
        shell = shell_arguments(sandbox_id=sandbox_id, workdir=spec.workdir, shell=ground.shell)
        command_for = partial(_command, tools.bwrap.path, blueprint, shell)
        try:
            return await launch.start(command_for, timeout_s=self._start_timeout_s)
        except StartFailure as failure:
            if failure.returned == _NO_WORKDIR:
                raise SandboxStartError(
                    f"the image {spec.image} has no directory {spec.workdir}"
                ) from None
            raise

    async def _prepared(self, spec: SandboxSpec) -> PreparedLayer:
        image = self._resolve(spec.image)
        assert self._store is not None
        layers = PreparedLayers(self._store.folder)

        async def build(folder: Path) -> Seal:
            bare = SandboxSpec(image=spec.image, workdir=spec.workdir, limits=HIDING_LIMITS)
            tools = await self._prepare()
            async with self._hiding, AsyncExitStack() as stack:
                ground = self._ground(bare, tools.userland)
                sandbox = await self._entered(stack, tools, bare, ground)
                seal = await hide_future(sandbox, str(spec.base_commit), spec.setup_patch)
                await copy_written(self._written_folder(sandbox), folder)
            return seal

        identity = identity_of(image)
        return await layers.get(layer_key(spec, identity), build, identity=identity)

    def _written_folder(self, sandbox: BubblewrapSandbox) -> Path:
        """Where the host sees what a sandbox has written, in the inner bwrap's namespace."""
        bwrap_pid = processes.parent_of(sandbox.init_pid)
        run_folder = self._leases.run_folder(sandbox.sandbox_id)
        return Path(f"/proc/{bwrap_pid}/root{run_folder}/upper")

    def _ground(
        self, spec: SandboxSpec, userland: Userland, prepared: PreparedLayer | None = None
    ) -> _Ground:
        if not spec.workdir.startswith("/"):
            raise SandboxStartError(f"the working directory {spec.workdir!r} is not absolute")
        if spec.image == HOST_IMAGE:
            return self._host_ground(spec, userland)
        return self._image_ground(spec, prepared)

    def _host_ground(self, spec: SandboxSpec, userland: Userland) -> _Ground:
        skeleton = self._layers.get(userland.skeleton_key, build_skeleton)
        return _Ground(
            layers=(skeleton, *self._files(spec)),
            env=userland.env,
            shell=userland.shell,
            binds=(*userland.binds, *_resolver(spec)),
            folders=(spec.workdir,),
        )

    def _image_ground(self, spec: SandboxSpec, prepared: PreparedLayer | None) -> _Ground:
        image = self._resolve(spec.image)
        # Root inside is the caller outside, and nobody else is mapped.
        if any(layer.stat().st_uid != os.geteuid() for layer in image.layers):
            raise ImageError(
                f"{image.rootfs} belongs to another user, so nothing in it could be changed",
                hint=f"import a tarball of it: palestra images add {spec.image} FILE.tar",
            )
        hosts = self._layers.get("hosts-1", build_hosts_layer)
        hidden = (prepared.folder,) if prepared is not None else ()
        return _Ground(
            layers=(*image.layers, *hidden, hosts, *self._files(spec)),
            env={**_IMAGE_ENV, **image.env},
            shell="/bin/bash" if image.has_program("bash") else "/bin/sh",
            binds=_resolver(spec),
            ids=image.user_ids,
        )

    def _resolve(self, name: str) -> UnpackedImage:
        if self._store is None:
            raise ImageError(f"no store of unpacked images is set: cannot find {name}")
        return self._store.resolve(name)

    def _files(self, spec: SandboxSpec) -> tuple[Path, ...]:
        return (self._layers.repository(spec.workdir, spec.files),) if spec.files else ()


def _resolver(spec: SandboxSpec) -> tuple[Bind, ...]:
    """What finds hosts by name, where the sandbox has a network."""
    name = "/etc/resolv.conf"
    return (Bind(source=name, target=name, optional=True),) if spec.network else ()


def _command(bwrap: Path, blueprint: Blueprint, shell: list[str], info_fd: int) -> list[str]:
    return bwrap_command(bwrap, blueprint, shell, info_fd=info_fd)
