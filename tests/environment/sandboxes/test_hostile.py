"""What hostile commands do to a sandbox, and do not do to us, in every place."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
from places import ENGINES, Place, output, run

from palestra.environment.sandboxes.engine_api import open_engine
from palestra.environment.sandboxes.limits import mechanism_in_use
from palestra.environment.sandboxes.protocol import (
    Sandbox,
    SandboxBackend,
    SandboxLimits,
    SandboxSpec,
)
from palestra.environment.sandboxes.sandbox import BubblewrapSandbox
from palestra.errors import SandboxDied

SMALL = SandboxLimits(memory_bytes=160 << 20, num_pids=48, disk_bytes=16 << 20, cpus=1.0)


@pytest.fixture
def small(spec: SandboxSpec) -> SandboxSpec:
    return replace(spec, limits=SMALL)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def assert_usable(box: Sandbox) -> None:
    done = await run(box, "echo usable")
    assert (done.output, done.exit_code, done.timed_out) == ("usable\n", 0, False), done


async def test_200_mb_of_output_grow_no_memory(box: Sandbox) -> None:
    await assert_usable(box)
    peak = before = resident_bytes()
    flood = asyncio.create_task(
        box.run(
            "echo HEAD; head -c 200000000 /dev/zero | tr '\\0' a; echo TAIL",
            timeout_s=120,
            output_limit_bytes=100_000,
        )
    )
    while not flood.done():
        await asyncio.sleep(0.02)
        peak = max(peak, resident_bytes())
    done = await flood
    assert done.output.startswith("HEAD\naaa")
    assert done.output.endswith("aaaTAIL\n")
    assert done.elided_bytes == 200_000_010 - 100_000
    assert peak - before < 24 << 20, f"grew by {(peak - before) >> 20} MiB"


async def test_any_bytes_come_back_as_they_are(box: Sandbox) -> None:
    data = bytes(range(256)) * 40
    await box.write_file(f"{box.workdir}/bytes", data)
    assert await box.read_file(f"{box.workdir}/bytes") == data
    assert (await run(box, "cat bytes")).output == data.decode("utf-8", "replace")
    said = "".join(map(chr, range(1, 1200)))
    assert await output(box, f"cat <<'EOF'\n{said}\nEOF") == f"{said}\n"


@pytest.mark.parametrize(
    "command",
    [
        'for fd in 0 1 2 3 4 5 6 7 8 9; do eval "exec $fd>&-"; done; exit 4',
        "kill -9 -1; kill -9 $PPID; kill -9 1",
        "kill -STOP 1; kill -TERM 1; kill -HUP 1; kill -INT 1; kill -PIPE 1",
        "ls /proc/1/fd | while read fd; do echo junk >/proc/1/fd/$fd & done; sleep 0.2; exit 4",
        "(head -c 300000 /dev/zero; echo; echo 1 0; echo) >/proc/1/fd/1; exit 4",
        "rm -rf /dev/palestra/* /dev/shm/* /tmp/*; echo x >/dev/palestra/99.in",
        "ulimit -t 0; ulimit -n 0; while :; do :; done",
        "umask 777; mkdir d; chmod 0 . d; cd d; exit 4",
        'rm -rf "$PWD"; exit 4',
    ],
)
@pytest.mark.usefixtures("isolated")
async def test_attacks_on_the_channel(box: Sandbox, command: str) -> None:
    await run(box, command, timeout_s=20)
    await assert_usable(box)


@pytest.mark.usefixtures("isolated")
async def test_endless_writing_to_the_shells_own_pipes(box: Sandbox) -> None:
    """A reader of the shell's stdin may take a command from it; the next one is right again."""
    await run(box, "(cat /proc/1/fd/0 >/dev/null & sleep 0.2; kill -9 $!) 2>/dev/null")
    await assert_usable(box)


@pytest.mark.usefixtures("isolated")
async def test_shells_that_are_replaced_end_nothing_but_commands(
    box: Sandbox, backend: SandboxBackend, spec: SandboxSpec
) -> None:
    replace_them = "for s in bash sh; do p=$(command -v $s) && rm -f $p; echo x >$p; done"
    await run(box, f"{replace_them}; chmod 0 /bin/sh /bin/bash")
    # In busybox that was every program: what is left may not even carry the output any more.
    done = await run(box, "echo after", timeout_s=3)
    assert done.output in ("after\n", "") or done.exit_code in (126, 127), done
    async with backend.start(spec) as other:
        await assert_usable(other)


@pytest.mark.usefixtures("isolated")
async def test_everything_removed_hurts_nobody_else(
    box: Sandbox, backend: SandboxBackend, spec: SandboxSpec
) -> None:
    async with backend.start(spec) as other:
        await run(box, "rm -rf --no-preserve-root / 2>/dev/null || rm -rf /* 2>/dev/null", 60)
        # What is left may not be able to start a command; it says so, in time.
        done = await run(box, "echo after", timeout_s=20)
        assert done.output == "after\n" or done.exit_code in (126, 127), done
        await assert_usable(other)
    async with backend.start(spec) as third:
        await assert_usable(third)


# --- limits -------------------------------------------------------------------


@pytest.mark.usefixtures("isolated")
async def test_processes_are_limited_and_room_is_made(
    backend: SandboxBackend, small: SandboxSpec
) -> None:
    async with backend.start(small) as box:
        # bash waits long and often before it gives up to fork
        done = await run(box, "i=0; while [ $i -lt 100 ]; do sleep 60 & i=$((i+1)); done", 3)
        assert done.limit == "pids", done
        await assert_usable(box)


@pytest.mark.usefixtures("isolated")
async def test_fork_bomb(backend: SandboxBackend, small: SandboxSpec) -> None:
    if mechanism_in_use() == "watchdog":
        pytest.skip("without cgroups a bomb shakes the whole machine until the watchdog looks")
    async with backend.start(small) as box:
        done = await run(box, "b() { b | b & }; b; sleep 1", timeout_s=5)
        assert done.limit == "pids", done
        await assert_usable(box)


@pytest.mark.usefixtures("isolated")
async def test_memory_is_limited(backend: SandboxBackend, small: SandboxSpec) -> None:
    async with backend.start(small) as box:
        # A variable that grows: every image has a shell.
        grow = "x=0123456789abcdef; while :; do x=$x$x; done"
        done = await run(box, f"sh -c '{grow}'", timeout_s=60)
        assert (done.limit, done.exit_code) == ("memory", 137), done
        await assert_usable(box)


@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize("folder", ["/tmp", "/testbed"])
async def test_disk_is_limited(backend: SandboxBackend, small: SandboxSpec, folder: str) -> None:
    async with backend.start(small) as box:
        fill = f"head -c 60000000 /dev/zero >{folder}/big"
        done = await run(box, fill, timeout_s=60)
        assert done.limit == "disk", done
        assert done.exit_code != 0
        await run(box, f"rm {folder}/big")
        assert await output(box, f"echo x >{folder}/x; cat {folder}/x") == "x\n"


@pytest.mark.usefixtures("isolated")
async def test_many_files_are_limited_too(backend: SandboxBackend, small: SandboxSpec) -> None:
    async with backend.start(small) as box:
        fill = "i=0; while head -c 8000000 /dev/zero >/tmp/$i; do i=$((i+1)); sleep 0.2; done"
        done = await run(box, f"{fill}; exit 1", timeout_s=60)
        assert done.limit == "disk", done
        await run(box, "rm /tmp/*")
        await assert_usable(box)


@pytest.mark.usefixtures("isolated")
async def test_cpu_is_limited(place: Place, backend: SandboxBackend, spec: SandboxSpec) -> None:
    if place.backend_name == "bubblewrap" and mechanism_in_use() == "watchdog":
        pytest.skip("a watchdog does not limit the CPU")
    limits = replace(SMALL, cpus=0.25)
    async with backend.start(replace(spec, limits=limits)) as box:
        done = await run(box, "while :; do :; done", timeout_s=3)
        assert (done.timed_out, done.limit) == (True, "cpu"), done
        await assert_usable(box)


# --- network ------------------------------------------------------------------


@pytest.mark.usefixtures("isolated")
async def test_no_network_at_all(box: Sandbox) -> None:
    assert await output(box, "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '") == "lo\n"
    # An abstract socket has no file that a mount namespace could hide.
    name = f"palestra-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as abstract, socket.socket() as loopback:
        abstract.bind(f"\0{name}")
        abstract.listen()
        loopback.bind(("127.0.0.1", 0))
        loopback.listen()
        port = loopback.getsockname()[1]
        assert name not in await output(box, "cat /proc/net/unix")
        assert f":{port:04X} " not in await output(box, "cat /proc/net/tcp")
        for listener in (abstract, loopback):
            listener.setblocking(False)
        # bash, busybox's nc and wget, or Python: whatever is there may try.
        tries = (
            f"exec 3<>/dev/tcp/127.0.0.1/{port}",
            f"nc -w 2 127.0.0.1 {port} </dev/null",
            f"wget -T 2 -q -O - http://127.0.0.1:{port}/",
            "wget -T 2 -q -O - http://example.com/",
            "getent hosts example.com",
            "nslookup example.com",
            f"python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect(\"\\0{name}\")'",
        )
        for attempt in tries:
            # "|| exit", since a redirection that fails goes on in bash
            done = await run(box, f"{{ {attempt}; }} 2>&1 || exit 7", timeout_s=20)
            assert done.exit_code != 0, f"{attempt}: {done}"
        for listener in (abstract, loopback):
            with pytest.raises(BlockingIOError):
                listener.accept()


# --- death --------------------------------------------------------------------


async def kill_from_outside(box: Sandbox, place: Place) -> None:
    if isinstance(box, BubblewrapSandbox):
        os.kill(box.init_pid, 9)
        return
    async with open_engine(ENGINES[place.backend_name]) as api:
        await api.signal(f"palestra-{box.sandbox_id}", "SIGKILL")


@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize("command", ["sleep 60", "while :; do echo y; done", ""])
async def test_killed_from_outside_is_a_typed_error_at_once(
    place: Place, backend: SandboxBackend, spec: SandboxSpec, command: str
) -> None:
    async with backend.start(spec) as box:
        task = asyncio.create_task(run(box, command, timeout_s=60)) if command else None
        await asyncio.sleep(0.2)
        started_s = time.monotonic()
        await kill_from_outside(box, place)
        if task is not None:
            with pytest.raises(SandboxDied):
                await task
        else:
            await asyncio.sleep(0.2)
        for call in (run(box, "true"), box.read_file("/etc/passwd"), box.write_file("/x", b"")):
            with pytest.raises(SandboxDied):
                await call
        assert time.monotonic() - started_s < 20
