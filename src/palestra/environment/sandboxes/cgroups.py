"""What the kernel's cgroups say of a process: where it belongs, and which limits it hit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from palestra.environment.sandboxes.processes import read_kernel_file

SPARE_PIDS = 4
"""What is kept for the shell and one command."""


def own_cgroups(mounts: str, groups: str) -> dict[str, tuple[Path, Path]]:
    """A process's cgroup by controller ("" is v2), each as (its folder, root of its mount).

    Args:
        mounts: text in the form of ``/proc/self/mountinfo``.
        groups: text in the form of ``/proc/PID/cgroup``.
    """
    inside: dict[str, str] = {}
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        inside.update(dict.fromkeys(controllers.split(","), path))
    found = {}
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ")[:3]
        if kind not in ("cgroup", "cgroup2"):
            continue
        root, mount_point = left.split(" ")[3:5]
        names = [""] if kind == "cgroup2" else options.split(",")
        for name in names:
            group = inside.get(name)
            if group is not None and (group == root or group.startswith(root.rstrip("/") + "/")):
                own = Path(mount_point, group[len(root) :].lstrip("/"))
                found[name] = (own, Path(mount_point))
    return found


class CgroupCounters:
    """Counts how often the limits of one cgroup were hit.

    Args:
        folders: of the cgroup by controller; what is missing is not counted.
        is_v2: whether these are of cgroup v2.
        num_pids: the limit on processes.
    """

    def __init__(self, folders: Mapping[str, Path], *, is_v2: bool, num_pids: int) -> None:
        files = {
            "memory": ("memory.events" if is_v2 else "memory.oom_control", "oom_kill"),
            "pids": ("pids.events", "max"),
            "cpu": ("cpu.stat", "nr_throttled"),
        }
        self._counters = {
            name: (f"{folders[name]}/{file}", key)
            for name, (file, key) in files.items()
            if name in folders
        }
        self._pids_file = f"{folders['pids']}/pids.current" if "pids" in folders else None
        self._peak_file = (
            f"{folders['memory']}/{'memory.peak' if is_v2 else 'memory.max_usage_in_bytes'}"
            if "memory" in folders
            else None
        )
        self._num_pids = num_pids
        self._seen = dict.fromkeys(self._counters, 0)

    def is_crowded(self) -> bool:
        """Whether so many processes are left that the shell might not start another."""
        return (
            self._pids_file is not None and _number(self._pids_file) > self._num_pids - SPARE_PIDS
        )

    def peak_memory_bytes(self) -> int | None:
        """The most memory that the group ever had at once; ``None`` where the kernel cannot say."""
        return (_number(self._peak_file) or None) if self._peak_file is not None else None

    def newly_hit(self) -> str | None:
        """Which limit was hit since the last call: ``memory``, ``pids``, ``cpu`` or ``None``."""
        counts = {name: _counter(*where) for name, where in self._counters.items()}
        risen = [name for name, count in counts.items() if count > self._seen[name]]
        self._seen = counts
        return risen[0] if risen else None


def counters_of(pid: int, *, num_pids: int) -> CgroupCounters | None:
    """Counters of the cgroup of process ``pid``, or ``None`` where we cannot see it.

    Args:
        pid: of a process in a cgroup that is not ours.
        num_pids: the limit on processes.
    """
    groups, ours = (_text(f"/proc/{which}/cgroup") for which in (pid, "self"))
    mounts = _text("/proc/self/mountinfo")
    found = own_cgroups(mounts, groups)
    if "pids" in found and "memory" in found:
        names, is_v2 = {name: found[name][0] for name in found}, False
    elif "" in found:
        names, is_v2 = dict.fromkeys(("memory", "pids", "cpu"), found[""][0]), True
    else:
        return None
    # An engine on another machine, or behind a proxy, names a pid that is somebody else's.
    if ours == groups or not (names["pids"] / "pids.current").exists():
        return None
    return CgroupCounters(names, is_v2=is_v2, num_pids=num_pids)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _counter(file: str, key: str) -> int:
    for line in (read_kernel_file(file) or "").splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def _number(file: str) -> int:
    text = (read_kernel_file(file) or "").strip()
    return int(text) if text.isdigit() else 0
