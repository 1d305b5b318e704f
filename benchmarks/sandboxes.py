"""Start and command latency of our sandboxes, beside bare bwrap and a bare bash.

Run it as ``python benchmarks/sandboxes.py [--image NAME --images FOLDER] [--live 200]``.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.bwrap import find_bwrap
from palestra.environment.sandboxes.images import ImageStore
from palestra.environment.sandboxes.protocol import SandboxSpec
from palestra.environment.sandboxes.sandbox import BubblewrapSandbox
from palestra.records import HOST_IMAGE, TaskFile

FILES = tuple(TaskFile(path=f"package/module_{n}.py", text=f"X = {n}\n" * 40) for n in range(12))


def median_ms(work: Callable[[], object], repeats: int) -> float:
    times_s = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - started_s)
    return statistics.median(times_s) * 1e3


def bare_bash() -> None:
    subprocess.run(["/bin/bash", "-c", "true"], check=True)


def bare_bwrap() -> None:
    command = [find_bwrap().path, "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/"]
    subprocess.run([*command, "--proc", "/proc", "--dev", "/dev", "/bin/bash", "-c", "true"])


async def measure(spec: SandboxSpec, backend: BubblewrapBackend, repeats: int) -> dict[str, float]:
    times_s: dict[str, list[float]] = {"start": [], "first command": [], "command": [], "stop": []}
    for _ in range(repeats):
        marks = [time.perf_counter()]
        async with backend.start(spec) as sandbox:
            marks.append(time.perf_counter())
            await sandbox.run("true", timeout_s=30)
            marks.append(time.perf_counter())
            for _ in range(10):
                await sandbox.run("true", timeout_s=30)
            marks.append(time.perf_counter())
        marks.append(time.perf_counter())
        for (name, times), begun_s, ended_s in zip(times_s.items(), marks, marks[1:], strict=False):
            times.append((ended_s - begun_s) / (10 if name == "command" else 1))
    return {name: statistics.median(times) * 1e3 for name, times in times_s.items()}


async def measure_live(spec: SandboxSpec, backend: BubblewrapBackend, number: int) -> str:
    async with AsyncExitStack() as stack:
        started_s = time.perf_counter()
        boxes = await asyncio.gather(
            *(stack.enter_async_context(backend.start(spec)) for _ in range(number))
        )
        rate = number / (time.perf_counter() - started_s)
        started_s = time.perf_counter()
        await asyncio.gather(*(box.run("true", timeout_s=60) for box in boxes))
        command_s = time.perf_counter() - started_s
        kib = [pss_kib(box.init_pid) for box in boxes if isinstance(box, BubblewrapSandbox)]
    return (
        f"{number} live: {rate:.0f} starts a second, {number / command_s:.0f} commands a second, "
        f"{statistics.mean(kib) / 1024:.2f} MiB each (its shell and two bwraps)"
    )


def pss_kib(init_pid: int) -> int:
    """Proportional memory of pid 1 and of the two bwraps above it, in KiB."""
    total, pid = 0, init_pid
    for _ in range(3):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return total


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="folder of unpacked images")
    parser.add_argument("--image", help="name of the image; default: the host's userland")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--live", type=int, default=200)
    options = parser.parse_args()
    store = ImageStore(options.images) if options.images else None
    spec = SandboxSpec(image=options.image or HOST_IMAGE, workdir="/testbed", files=FILES)
    bash_ms = median_ms(bare_bash, options.repeats)
    bwrap_ms = median_ms(bare_bwrap, options.repeats)
    with tempfile.TemporaryDirectory() as folder:
        backend = BubblewrapBackend(store=store, state_dir=Path(folder))
        await backend.check()
        ours = await measure(spec, backend, options.repeats)
        print(
            f"bare `bash -c true` {bash_ms:.2f} ms, bare `bwrap … bash -c true` {bwrap_ms:.2f} ms"
        )
        print("ours: " + ", ".join(f"{name} {ms:.2f} ms" for name, ms in ours.items()))
        print(f"start ratio {ours['start'] / bwrap_ms:.2f} of bare bwrap")
        print(f"command ratio {ours['command'] / bash_ms:.2f} of bare bash")
        print(await measure_live(spec, backend, options.live))


if __name__ == "__main__":
    asyncio.run(main())
