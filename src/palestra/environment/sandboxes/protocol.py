"""What every sandbox backend gives: a machine-like place in which commands run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from palestra.records import Task, TaskFile

SECRET_FD = 7
"""Where a command reads its secret: a pipe, empty once it was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxLimits:
    """What one sandbox may use; hitting a limit is reported as what it is."""

    memory_bytes: int = 4 << 30
    num_pids: int = 512
    disk_bytes: int = 8 << 30
    cpus: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """What to start: an image (or the host's userland), a directory, an environment.

    ``files`` are laid into ``workdir`` as a git repository with one commit, for
    tasks that carry their repository in the row. ``base_commit`` is the last one that the
    repository of the image may show; ``None``: as the image is. ``setup_patch`` makes that
    commit of what the image's repository holds.
    """

    image: str
    workdir: str
    files: tuple[TaskFile, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    limits: SandboxLimits = SandboxLimits()
    network: bool = False
    base_commit: str | None = None
    setup_patch: str = ""

    def __post_init__(self) -> None:
        if self.setup_patch and self.base_commit is None:
            raise ValueError("a setup patch needs the id of the commit that it makes")

    @classmethod
    def for_task(cls, task: Task, limits: SandboxLimits, env: Mapping[str, str]) -> SandboxSpec:
        """The sandbox that ``task`` asks for."""
        return cls(
            image=task.image,
            workdir=task.workdir,
            files=task.files,
            env=env,
            limits=limits,
            base_commit=None if task.files else task.base_commit,
            setup_patch="" if task.files else task.setup_patch,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """What one command did.

    ``output`` is stdout and stderr merged in order, decoded as UTF-8 with
    replacement, held to a head and a tail; ``elided_bytes`` were dropped between.
    ``exit_code`` is -1 when the command timed out. ``limit`` names a sandbox
    limit (memory, pids, disk, or cpu for one that timed out) that the command hit,
    where that is known.
    """

    output: str
    exit_code: int
    timed_out: bool = False
    elided_bytes: int = 0
    limit: str | None = None
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageProgress:
    """How far the fetching of one image is.

    Attributes:
        done_bytes: fetched so far, compressed.
        total_bytes: of the whole image, compressed; ``None`` while unknown.
        seconds_left: as it goes now; ``None`` while unknown.
    """

    done_bytes: int
    total_bytes: int | None
    seconds_left: float | None


OnProgress = Callable[[ImageProgress], None]
"""Is told now and then how far it is; called on the event loop's thread, must not block."""


class Sandbox(Protocol):
    """One live sandbox. Every method raises ``SandboxDied`` once it is gone."""

    @property
    def sandbox_id(self) -> str:
        """Short unique id; what clean-up goes by."""
        ...

    @property
    def workdir(self) -> str:
        """Absolute directory in which commands start."""
        ...

    async def run(
        self,
        command: str,
        *,
        timeout_s: float,
        output_limit_bytes: int = 1 << 20,
        secret: str = "",
    ) -> CommandResult:
        """Run ``command`` with bash in a fresh subshell of ``workdir``, stdin at EOF.

        On time-out the whole process tree of the command is killed, the sandbox
        stays usable and the partial output is returned.

        ``secret`` (hexadecimal digits) is a line that the command can read once, from
        descriptor :data:`SECRET_FD`; it stands in no file, argument or environment.
        """
        ...

    async def write_file(self, path: str, data: bytes) -> None:
        """Write ``data`` to the absolute ``path``, creating parent directories."""
        ...

    async def read_file(self, path: str, *, max_bytes: int = 64 << 20) -> bytes:
        """The bytes of the absolute ``path``.

        Raises:
            FileNotFoundError: there is no such regular file.
            ValueError: it is larger than ``max_bytes``.
        """
        ...

    def peak_memory_bytes(self) -> int | None:
        """The most memory that it ever had at once, caches and written files included.

        ``None`` where nobody counts.
        """
        ...


class SandboxBackend(Protocol):
    """Starts sandboxes of one kind."""

    @property
    def name(self) -> str:
        """``bubblewrap``, ``docker`` or ``podman``."""
        ...

    async def check(self) -> None:
        """Prove by a trial start that sandboxes work on this machine.

        Raises:
            SandboxUnavailable: they do not; says why and what to do.
        """
        ...

    async def ensure_image(self, image: str, on_progress: OnProgress) -> None:
        """Bring ``image`` to where sandboxes start from; at once when it is there.

        Safe to call for one image from many episodes and processes at the same time:
        it is fetched once.

        Raises:
            ImageError: it is unknown, refused or broken.
            HostError: the disk is or would be full, or a tool is missing.
        """
        ...

    async def identify(self, image: str) -> str:
        """What ``image`` is made of, in a word that changes with it.

        A digest where there is one (``sha256:…``); else ``folder:…`` for a folder that was
        registered, of which the outermost files are looked at only, or ``host``.

        Raises:
            ImageError: it is not there.
        """
        ...

    async def prepare(self, spec: SandboxSpec) -> None:
        """Do once what ``start(spec)`` would do first: hide what came after ``base_commit``.

        Safe to call from many episodes and processes at the same time.

        Raises:
            ImageError: the image is not there, or its repository does not hold the commit.
            HostError: the disk is full.
        """
        ...

    def start(self, spec: SandboxSpec) -> AbstractAsyncContextManager[Sandbox]:
        """Start a sandbox; leaving the context removes everything it made.

        Raises (on entry):
            UnverifiedHistory: the repository may show more than ``spec.base_commit``.
            ImageError: ``spec.image`` is unknown or broken.
            SandboxStartError: it did not come up.
        """
        ...
