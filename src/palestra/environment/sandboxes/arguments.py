"""From what a sandbox shall be to bwrap's command line, as pure functions.

Two bwraps are nested. The outer one makes a mount namespace with a tmpfs of a
given size, on which the inner one lays the writable side of its overlay, because
bwrap's own ``--tmp-overlay`` has no size. It also makes the channel's folder, on a
tmpfs of its own: the host writes to it however full the sandbox is, and file systems
on a disk are slow where files come and go. All of it ends with the processes: no
mount is ever seen outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HOSTNAME = "sandbox"
CHANNEL = "channel"
"""Name of the channel's folder in the sandbox's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """A read-only bind; one that is optional may be missing on the host."""

    source: str
    target: str
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """All that bwrap must know of one sandbox."""

    layers: tuple[Path, ...]
    """Lower layers of the root file system, the bottommost first."""
    mount_point: Path
    """A folder of the host on which the outer bwrap mounts the tmpfs; many may share it."""
    name: str
    """Of the sandbox's folder on that tmpfs."""
    disk_bytes: int
    channel_target: str
    """Where inside the channel's folder appears, read-only."""
    binds: tuple[Bind, ...] = ()
    folders: tuple[str, ...] = ()
    """Folders inside to make where they are missing."""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    uid: int = 0
    gid: int = 0
    network: bool = False

    @property
    def folder(self) -> str:
        """The sandbox's folder on the tmpfs."""
        return f"{self.mount_point}/{self.name}"


def bwrap_command(
    bwrap: Path, blueprint: Blueprint, program: Sequence[str], *, info_fd: int
) -> list[str]:
    """The command that starts ``program`` as pid 1; bwrap tells its host pid on ``info_fd``."""
    inner = [str(bwrap), *_namespaces(blueprint, info_fd), *_file_systems(blueprint)]
    inner.append("--clearenv")
    for name, value in blueprint.env.items():
        inner += ["--setenv", name, value]
    # Anything below may be missing: the shell changes into the working directory.
    return [*_outer(bwrap, blueprint), *inner, "--chdir", "/", "--", *program]


def _outer(bwrap: Path, blueprint: Blueprint) -> list[str]:
    mount_point, folder = str(blueprint.mount_point), blueprint.folder
    command = [str(bwrap), "--die-with-parent", "--unshare-user", "--dev-bind", "/", "/"]
    command += ["--size", str(blueprint.disk_bytes), "--perms", "0755", "--tmpfs", mount_point]
    for name, mode in (("upper", "0755"), ("work", "0755"), ("shm", "1777")):
        command += ["--perms", mode, "--dir", f"{folder}/{name}"]
    return [*command, "--perms", "0755", "--tmpfs", f"{folder}/{CHANNEL}", "--"]


def _namespaces(blueprint: Blueprint, info_fd: int) -> list[str]:
    options = ["--unshare-all", "--unshare-user", "--disable-userns"]
    if blueprint.network:
        options.append("--share-net")
    options += ["--uid", str(blueprint.uid), "--gid", str(blueprint.gid), "--cap-drop", "ALL"]
    options += ["--hostname", HOSTNAME, "--die-with-parent", "--as-pid-1"]
    # No --new-session: the whole sandbox stays in the outer bwrap's process group,
    # by which it can be killed even half-started, and there is no terminal to guard.
    return [*options, "--info-fd", str(info_fd)]


def _file_systems(blueprint: Blueprint) -> list[str]:
    folder = blueprint.folder
    options: list[str] = []
    for layer in blueprint.layers:
        options += ["--overlay-src", str(layer)]
    options += ["--overlay", f"{folder}/upper", f"{folder}/work", "/"]
    options += ["--proc", "/proc", "--dev", "/dev", "--bind", f"{folder}/shm", "/dev/shm"]
    options += ["--ro-bind", f"{folder}/{CHANNEL}", blueprint.channel_target]
    for bind in blueprint.binds:
        kind = "--ro-bind-try" if bind.optional else "--ro-bind"
        options += [kind, bind.source, bind.target]
    for missing in blueprint.folders:
        options += ["--dir", missing]
    # /dev is a tmpfs without a size; what must be writable in it is its own mount.
    return [*options, "--remount-ro", "/dev"]
