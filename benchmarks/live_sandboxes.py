"""A thousand live sandboxes: memory each, start rate, an answer from each.

Ours are bubblewrap sandboxes of an engine's image, exported and unpacked; beside them are
fewer of mini-swe-agent's docker environment on the same image. Memory is proportional
(``Pss`` of ``smaps_rollup``): of ours all three processes and their share of what this
process, which serves them, has grown by; of theirs the container's process and its shim, but
nothing of the engine. The kernel's own memory is in neither; what the machine's free memory
fell by, meanwhile and in all, is printed as well, and includes what others did.

    python benchmarks/live_sandboxes.py [--image palestra-test/debian:1] [--live 1000]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from containers import WORKDIR, Run, docker, export, theirs

from palestra.config import SandboxSection
from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.images import ImageStore
from palestra.environment.sandboxes.processes import parent_of
from palestra.environment.sandboxes.protocol import Sandbox, SandboxSpec
from palestra.environment.sandboxes.sandbox import BubblewrapSandbox
from palestra.errors import PalestraError

STARTS_AT_ONCE = 4
PROCESSES_EACH = 3  # two bwraps and a shell


class Live(NamedTuple):
    """What many live sandboxes cost, each."""

    starts_per_s: float
    commands_per_s: float
    mib_each: float
    served_mib_each: float
    free_mib_each: float


def kib(path: str, field: str) -> int:
    """A field of a file of the kernel's that has lines such as ``Pss:  12 kB``."""
    lines = Path(path).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def pss_kib(pids: Iterable[int]) -> int:
    return sum(kib(f"/proc/{pid}/smaps_rollup", "Pss") for pid in pids)


def processes_of(sandbox: Sandbox) -> list[int]:
    assert isinstance(sandbox, BubblewrapSandbox)
    pids = [sandbox.init_pid]
    while parent_of(pids[-1]) != os.getpid():
        pids.append(parent_of(pids[-1]))
    assert len(pids) == PROCESSES_EACH, pids
    return pids


async def answered(sandbox: Sandbox, number: int) -> None:
    said = (await sandbox.run(f"echo $(({number} * 2))", timeout_s=600)).output
    assert said == f"{number * 2}\n", f"sandbox {number} answered {said!r}"


async def measure_ours(backend: BubblewrapBackend, image: str, number: int) -> Live:
    spec = SandboxSpec(image=image, workdir=WORKDIR)
    slots = asyncio.Semaphore(STARTS_AT_ONCE)
    async with AsyncExitStack() as stack:

        async def started() -> Sandbox:
            async with slots:
                return await stack.enter_async_context(backend.start(spec))

        server_kib, free_kib = pss_kib([os.getpid()]), kib("/proc/meminfo", "MemAvailable")
        marks_s = [time.perf_counter()]
        boxes = await asyncio.gather(*(started() for _ in range(number)))
        marks_s.append(time.perf_counter())
        await asyncio.gather(*(answered(box, n) for n, box in enumerate(boxes)))
        marks_s.append(time.perf_counter())
        theirs_kib = pss_kib(pid for box in boxes for pid in processes_of(box))
        served_kib = pss_kib([os.getpid()]) - server_kib
        return Live(
            starts_per_s=number / (marks_s[1] - marks_s[0]),
            commands_per_s=number / (marks_s[2] - marks_s[1]),
            mib_each=(theirs_kib + served_kib) / number / 1024,
            served_mib_each=served_kib / number / 1024,
            free_mib_each=(free_kib - kib("/proc/meminfo", "MemAvailable")) / number / 1024,
        )


async def measure_theirs(image: str, number: int) -> Live:
    slots = asyncio.Semaphore(STARTS_AT_ONCE)
    async with AsyncExitStack() as stack:

        async def started() -> Run:
            async with slots:
                return await stack.enter_async_context(theirs(image))

        before = set(docker("ps", "-q", "--no-trunc").split())
        free_kib = kib("/proc/meminfo", "MemAvailable")
        marks_s = [time.perf_counter()]
        runs = await asyncio.gather(*(started() for _ in range(number)))
        marks_s.append(time.perf_counter())
        said = await asyncio.gather(*(run(f"echo $(({n} * 2))") for n, run in enumerate(runs)))
        assert said == [f"{n * 2}\n" for n in range(number)], said
        marks_s.append(time.perf_counter())
        # Others may start containers of their own meanwhile; theirs are named.
        names = "{{.State.Pid}} {{.Name}}"
        found = set(docker("ps", "-q", "--no-trunc").split()) - before
        listed = docker("inspect", "--format", names, *found).splitlines()
        mains = [int(pid) for pid, name in map(str.split, listed) if "/minisweagent-" in name]
        assert len(mains) == number, listed
        pids = {pid for main in mains for pid in (main, parent_of(main))}
        return Live(
            starts_per_s=number / (marks_s[1] - marks_s[0]),
            commands_per_s=number / (marks_s[2] - marks_s[1]),
            mib_each=pss_kib(pids) / number / 1024,
            served_mib_each=0.0,
            free_mib_each=(free_kib - kib("/proc/meminfo", "MemAvailable")) / number / 1024,
        )


async def compare(image: str, live: int, live_theirs: int, folder: Path) -> None:
    (store := ImageStore(folder / "images")).import_tar(image, export(image, folder))
    backend = BubblewrapBackend(store=store, state_dir=folder / "state")
    await backend.check()
    mine = await measure_ours(backend, image, live)
    other = await measure_theirs(image, live_theirs)
    report(mine, live, "bubblewrap")
    report(other, live_theirs, "mini-swe-agent's docker")
    print(
        f"ratio theirs/ours a sandbox: memory {other.mib_each / mine.mib_each:.1f}; "
        f"ratio ours/theirs: starts a second {mine.starts_per_s / other.starts_per_s:.1f}, "
        f"commands a second {mine.commands_per_s / other.commands_per_s:.1f}"
    )


def report(one: Live, number: int, name: str) -> None:
    print(
        f"{number} live, {name}: {one.mib_each:.2f} MiB each (of it {one.served_mib_each:.3f} in "
        f"the process that serves them), {one.starts_per_s:.0f} starts a second, "
        f"{one.commands_per_s:.0f} commands a second; "
        f"free memory fell by {one.free_mib_each:.2f} MiB each"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", default=SandboxSection().host_image, help="of the engine")
    parser.add_argument("--live", type=int, default=1000, help="of our sandboxes")
    parser.add_argument("--live-theirs", type=int, default=20, help="of their containers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # What minisweagent does at its import: greet, and make a folder for its settings.
        os.environ.update(MSWEA_SILENT_STARTUP="1", MSWEA_GLOBAL_CONFIG_DIR=folder)
        try:
            asyncio.run(compare(options.image, options.live, options.live_theirs, Path(folder)))
        except (PalestraError, FileNotFoundError) as error:  # no engine, image or docker program
            sys.exit(f"cannot compare: {error}")


if __name__ == "__main__":
    main()
