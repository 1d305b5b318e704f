"""Leases and the reaper: a killed server leaves nothing after the next one starts."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

from palestra.environment.sandboxes import processes
from palestra.environment.sandboxes.processes import ProcessId
from palestra.environment.sandboxes.reaper import Leases, boot_id, reap

SERVER = """
import asyncio, sys
from pathlib import Path
from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.protocol import SandboxSpec
from palestra.records import HOST_IMAGE, TaskFile

async def live(backend, number):
    files = (TaskFile(path="a", text=str(number)),)
    while True:
        async with backend.start(SandboxSpec(image=HOST_IMAGE, workdir="/w", files=files)) as box:
            print("up", flush=True)
            await box.run("setsid sleep 300 & sleep 0.0" + str(number), timeout_s=60)

async def main():
    backend = BubblewrapBackend(store=None, state_dir=Path(sys.argv[1]))
    await asyncio.gather(*(live(backend, n) for n in range(6)))

asyncio.run(main())
"""


def traces(state_dir: Path) -> list[str]:
    """Whatever of the sandboxes of ``state_dir`` is left: processes, groups, folders."""
    ids = [path.name for path in (state_dir / "run").glob("*")]
    left = [str(p) for sub in ("run", "leases") for p in (state_dir / sub).glob("*")]
    left += [
        f"{pid}: {args}"
        for pid, args in processes.command_lines()
        if any(str(state_dir) in part or part.removeprefix("palestra-") in ids for part in args)
        and pid != os.getpid()
    ]
    owned = {f"palestra-{sandbox_id}" for sandbox_id in ids}
    # os.walk passes over groups that others remove meanwhile
    return left + [f for f, _, _ in os.walk("/sys/fs/cgroup") if Path(f).name in owned]


def run_server(state_dir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SERVER, str(state_dir)], stdout=subprocess.PIPE, text=True
    )


def sleeper(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", *arguments])


@pytest.mark.parametrize("attempt", range(6))
async def test_killed_server_leaves_nothing_after_reaping(tmp_path: Path, attempt: int) -> None:
    state_dir = tmp_path / "state"
    with run_server(state_dir) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "up\n"
            await asyncio.sleep(random.Random(attempt).random() * 0.1)
            assert traces(state_dir), "the server made nothing: the test proves nothing"
        finally:
            server.send_signal(signal.SIGKILL)
    leases = {path.stem for path in (state_dir / "leases").glob("*.json")}
    reaped = await reap(state_dir)
    assert set(reaped.sandbox_ids) == leases
    assert traces(state_dir) == []
    remaining = [args for _, args in processes.command_lines() if leases & _ids_in(args)]
    assert remaining == []


def _ids_in(arguments: list[str]) -> set[str]:
    return {part.removeprefix("palestra-") for part in arguments}


async def test_orphan_of_a_half_started_bwrap_is_found_by_its_arguments(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    leases.open(sandbox_id="abc123", layers=(), cgroups=())
    _disown(tmp_path / "leases/abc123.json")
    mark = f"{leases.run_folder('abc123') / 'upper'}"
    orphan = sleeper(mark)
    try:
        assert (await reap(tmp_path)).num_killed == 1
        assert orphan.wait(10) == -signal.SIGKILL
    finally:
        orphan.kill()
        orphan.wait()
    assert traces(tmp_path) == []


async def test_living_owners_and_recycled_pids_are_left_alone(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    leases.open(sandbox_id="mine", layers=(), cgroups=())
    assert (await reap(tmp_path)).sandbox_ids == ()
    bystander = sleeper()
    try:
        path = tmp_path / "leases/mine.json"
        _disown(path, victims=[{"pid": bystander.pid, "start_ticks": 1}])
        reaped = await reap(tmp_path)
        assert (reaped.sandbox_ids, reaped.num_killed) == (("mine",), 0)
        assert bystander.poll() is None, "a process with a recycled pid was killed"
    finally:
        bystander.kill()
        bystander.wait()


async def test_lease_of_another_boot_names_no_processes(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    lease = leases.open(sandbox_id="old", layers=(), cgroups=())
    leases.add_process(lease, os.getpid())
    path = tmp_path / "leases/old.json"
    path.write_bytes(orjson.dumps(orjson.loads(path.read_bytes()) | {"boot_id": "before"}))
    assert boot_id() != "before"
    assert (await reap(tmp_path)).num_killed == 0
    assert traces(tmp_path) == []


async def test_broken_leases_and_hostile_ids_harm_nothing(tmp_path: Path) -> None:
    Leases(tmp_path).open(sandbox_id="good", layers=(), cgroups=())
    good = orjson.loads((tmp_path / "leases/good.json").read_bytes())
    keep = tmp_path / "keep"
    keep.mkdir()
    dead = {"pid": 1, "start_ticks": 1}
    evil = good | {"sandbox_id": "../keep", "owner": dead}
    (tmp_path / "leases/evil.json").write_bytes(orjson.dumps(evil))
    (tmp_path / "leases/torn.json").write_bytes(b'{"sandbox_')
    group = good | {"sandbox_id": "group", "owner": dead, "cgroups": [str(keep)]}
    (tmp_path / "leases/group.json").write_bytes(orjson.dumps(group))
    assert (await reap(tmp_path)).sandbox_ids == ("group",)
    assert keep.is_dir()


def test_identity_of_processes() -> None:
    own = processes.identify(os.getpid())
    assert own is not None
    assert processes.is_alive(own)
    assert not processes.is_alive(ProcessId(pid=own.pid, start_ticks=own.start_ticks + 1))
    assert not processes.kill(ProcessId(pid=own.pid, start_ticks=own.start_ticks + 1))
    child = subprocess.Popen(["true"])
    time.sleep(0.2)
    assert processes.identify(child.pid) is None, "a zombie counts as alive"
    child.wait()


def _disown(path: Path, victims: list[dict[str, int]] | None = None) -> None:
    lease = orjson.loads(path.read_bytes())
    lease |= {"owner": {"pid": 1, "start_ticks": 1}, "processes": victims or []}
    path.write_bytes(orjson.dumps(lease))
