"""Which mechanism of the kernel limits sandboxes, from what /proc says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from palestra.environment.sandboxes.limits import CgroupLimiter, find_limiter, mechanism_in_use
from palestra.environment.sandboxes.protocol import SandboxLimits


def mount(kind: str, point: Path, *, root: str = "/", options: str = "rw") -> str:
    return f"31 23 0:28 {root} {point} rw,relatime - {kind} {kind} {options}\n"


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    """A user's slice that hands memory and pids down, with our scope in it."""
    for group, shared in (("", ""), ("slice", "cpu memory pids"), ("slice/ours", "")):
        folder = tmp_path / group
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.subtree_control").write_text(shared)
        (folder / "cgroup.controllers").write_text("cpu memory pids")
        (folder / "cgroup.procs").write_text("1\n2\n")
    return tmp_path


def test_v2_groups_go_below_the_nearest_group_that_hands_controllers_down(v2: Path) -> None:
    limiter = find_limiter(mounts=mount("cgroup2", v2), own_groups="0::/slice/ours\n")
    assert isinstance(limiter, CgroupLimiter)
    assert limiter.mechanism == "cgroup v2"
    assert limiter.group("x", SandboxLimits()).paths == (v2 / "slice/palestra-x",)


def test_v2_without_controllers_is_no_use(v2: Path) -> None:
    (v2 / "slice/cgroup.subtree_control").write_text("cpu")
    limiter = find_limiter(mounts=mount("cgroup2", v2), own_groups="0::/slice/ours\n")
    assert limiter.mechanism == "watchdog"


def test_v1_needs_both_controllers(tmp_path: Path) -> None:
    for name in ("memory", "pids"):
        (tmp_path / name / "ours").mkdir(parents=True)
        (tmp_path / name / "ours/cgroup.procs").write_text("")
    memory = mount("cgroup", tmp_path / "memory", root="/outer", options="rw,memory")
    pids = mount("cgroup", tmp_path / "pids", options="rw,pids")
    own = "2:memory:/outer/ours\n1:pids:/ours\n"
    limiter = find_limiter(mounts=memory + pids, own_groups=own)
    assert limiter.mechanism == "cgroup v1"
    assert limiter.group("x", SandboxLimits()).paths == (
        tmp_path / "memory/ours/palestra-x",
        tmp_path / "pids/ours/palestra-x",
    )
    assert find_limiter(mounts=memory, own_groups=own).mechanism == "watchdog"
    assert find_limiter(mounts="", own_groups="").mechanism == "watchdog"


async def test_v2_settings_are_written(v2: Path) -> None:
    limiter = find_limiter(mounts=mount("cgroup2", v2), own_groups="0::/slice/ours\n")
    group = limiter.group("x", SandboxLimits(memory_bytes=1 << 20, num_pids=9, cpus=1.5))
    files = ("memory.max", "memory.swap.max", "pids.max", "cpu.max")
    (v2 / "slice/palestra-x").mkdir()
    for file in files:
        (v2 / "slice/palestra-x" / file).write_text("max")
    group.admit(os.getpid())
    async with group.enforced(lambda: None):
        pass
    written = [(v2 / "slice/palestra-x" / file).read_text() for file in files]
    assert written == ["1048576", "0", "9", "150000 100000"]
    assert (v2 / "slice/palestra-x/cgroup.procs").read_text() == str(os.getpid())
    events = v2 / "slice/palestra-x/memory.events"
    events.write_text("low 0\noom 3\noom_kill 2\n")
    assert [group.newly_hit(), group.newly_hit()] == ["memory", None]


def test_this_machine_names_its_mechanism() -> None:
    assert mechanism_in_use() in ("cgroup v2", "cgroup v1", "watchdog")
