"""Our sandboxes beside mini-swe-agent's docker environment: start, command, 30-step episode.

All start from one image and take turns, so that all see the same machine. Steps are small
shell commands whose outputs must agree; there is neither a model nor a test in an episode.

mini-swe-agent removes a container in the background, so its caller does not wait for
that: its episode is given without and with a ``docker rm -f`` that is waited for. Ours
includes the removal. Its settings are its own defaults: a login shell, a network.

    python benchmarks/containers.py [--image palestra-test/debian:1] [--repeats 10]
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from palestra.config import SandboxSection
from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.engine import EngineBackend
from palestra.environment.sandboxes.engine_api import DOCKER
from palestra.environment.sandboxes.images import ImageStore
from palestra.environment.sandboxes.protocol import SandboxBackend, SandboxSpec
from palestra.errors import PalestraError

Run = Callable[[str], Awaitable[str]]
Place = Callable[[], AbstractAsyncContextManager[Run]]

BASH, BUBBLEWRAP, THEIRS = "bash", "bubblewrap", "mini-swe-agent"
WORKDIR = "/tmp"
CALC = "def add(a, b):\n    return a - b\n\n\ndef twice(a):\n    return add(a, a)\n"
STEPS = 2 * (
    "mkdir work; for n in 1 2 3 4 5 6 7 8; do echo X = $n > work/module_$n.py; done; ls work",
    f"cat > work/calc.py <<'END'\n{CALC}END",
    "find work -type f | sort",
    "cat work/calc.py",
    "grep -rn 'def ' work",
    "grep -rlE 'X = [0-4]' work | sort",
    "sed -n '1,4p' work/calc.py",
    "cp work/calc.py calc.orig",
    "sed -i 's/a - b/a + b/' work/calc.py",
    "diff -u calc.orig work/calc.py | tail -n +3",
    "wc -l work/*.py",
    "cat work/module_*.py | sort -r | head -n 3",
    "cat work/missing 2>&1; head -n 5 /etc/passwd | cut -d: -f1",
    "seq 1 2000 | grep 77 | tail -n 4",
    "md5sum work/calc.py && rm -r work calc.orig",
)


class Episode(NamedTuple):
    """What has passed at the end of the start, of the last step and of the removal."""

    start_ms: float
    unremoved_ms: float
    whole_ms: float


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"docker {arguments[0]} says: {done.stderr.strip()}")
    return done.stdout.strip()


@asynccontextmanager
async def ours(backend: SandboxBackend, image: str) -> AsyncIterator[Run]:
    async with backend.start(SandboxSpec(image=image, workdir=WORKDIR)) as sandbox:

        async def run(command: str) -> str:
            return (await sandbox.run(command, timeout_s=60)).output

        yield run


@asynccontextmanager
async def theirs(image: str) -> AsyncIterator[Run]:
    from minisweagent.environments.docker import DockerEnvironment

    logger = logging.getLogger("theirs")
    environment = await asyncio.to_thread(
        DockerEnvironment, image=image, cwd=WORKDIR, logger=logger
    )

    async def run(command: str) -> str:
        answer = await asyncio.to_thread(environment.execute, {"command": command})
        return str(answer["output"])

    try:
        yield run
    finally:
        await asyncio.to_thread(docker, "rm", "-f", environment.container_id)
        environment.container_id = None  # else it would be stopped once more, in the background


def bare_bash() -> None:
    subprocess.run(["/bin/bash", "-c", "true"], check=True)


def in_turns(names: list[str], repeats: int) -> Iterator[str]:
    """Every name ``repeats`` times; who comes first changes with each round."""
    for number in range(repeats):
        yield from names[number % len(names) :] + names[: number % len(names)]


async def measure_commands(places: Mapping[str, Place], repeats: int) -> dict[str, float]:
    """Median milliseconds of ``true`` in sandboxes that are up, and of a bare bash."""
    times_ms = defaultdict(list)
    async with AsyncExitStack() as stack:
        runs = {name: await stack.enter_async_context(place()) for name, place in places.items()}
        for name in in_turns([BASH, *places], repeats):
            started_s = time.perf_counter()
            bare_bash() if name == BASH else await runs[name]("true")
            times_ms[name].append((time.perf_counter() - started_s) * 1e3)
    return {name: median(times) for name, times in times_ms.items()}


async def measure_episodes(places: Mapping[str, Place], repeats: int) -> dict[str, Episode]:
    episodes: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    said: list[str] | None = None
    for name in in_turns(list(places), repeats):
        marks_s = [time.perf_counter()]
        async with places[name]() as run:
            marks_s.append(time.perf_counter())
            outputs = [await run(step) for step in STEPS]
            marks_s.append(time.perf_counter())
        marks_s.append(time.perf_counter())
        episodes[name].append(tuple((mark_s - marks_s[0]) * 1e3 for mark_s in marks_s[1:]))
        said = said or outputs
        assert outputs == said, f"{name} answered otherwise: {outputs} and not {said}"
    return {name: Episode(*map(median, zip(*t, strict=True))) for name, t in episodes.items()}


def export(image: str, folder: Path) -> Path:
    """A tarball of the root file system of the engine's ``image``."""
    container_id = docker("create", image, "true")
    try:
        docker("export", "--output", str(folder / "image.tar"), container_id)
    finally:
        docker("rm", container_id)
    return folder / "image.tar"


async def made_places(image: str, folder: Path) -> dict[str, Place]:
    """Ours on both backends and theirs, all from the engine's ``image``."""
    engine = EngineBackend(DOCKER, host_image=image)
    await engine.ensure_image(image, lambda _: None)
    (store := ImageStore(folder / "images")).import_tar(image, export(image, folder))
    bubblewrap = BubblewrapBackend(store=store, state_dir=folder / "state")
    return {
        BUBBLEWRAP: partial(ours, bubblewrap, image),
        DOCKER.name: partial(ours, engine, image),
        THEIRS: partial(theirs, image),
    }


async def compare(image: str, repeats: int, folder: Path) -> None:
    places = await made_places(image, folder)
    await measure_episodes(places, 1)  # what only a first start does: tools found, layers made
    report(await measure_episodes(places, repeats), await measure_commands(places, repeats * 10))


def report(episodes: Mapping[str, Episode], commands_ms: Mapping[str, float]) -> None:
    bare_ms, other = commands_ms[BASH], episodes[THEIRS]
    print(f"load {os.getloadavg()[0]:.1f}; medians in ms; bare `bash -c true` {bare_ms:.2f}")
    print(f"{'':15}   start  command  above bash  {len(STEPS)} steps  and removal")
    for name, (start, unremoved, whole) in episodes.items():
        command = f"{commands_ms[name]:9.2f}{commands_ms[name] - bare_ms:12.2f}"
        print(f"{name:15}{start:8.1f}{command}{unremoved:10.0f}{whole:13.0f}")
    for name in (BUBBLEWRAP, DOCKER.name):
        mine, command_ratio = episodes[name], commands_ms[THEIRS] / commands_ms[name]
        print(
            f"ratio theirs/{name}: start {other.start_ms / mine.start_ms:.1f}, "
            f"command {command_ratio:.1f}, episode {other.unremoved_ms / mine.whole_ms:.1f} "
            f"(with their removal, too: {other.whole_ms / mine.whole_ms:.1f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", default=SandboxSection().host_image, help="of the engine")
    parser.add_argument("--repeats", type=int, default=10, help="episodes each; commands: x 10")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # What minisweagent does at its import: greet, and make a folder for its settings.
        os.environ.update(MSWEA_SILENT_STARTUP="1", MSWEA_GLOBAL_CONFIG_DIR=folder)
        try:
            asyncio.run(compare(options.image, options.repeats, Path(folder)))
        except (PalestraError, FileNotFoundError) as error:  # no engine, image or docker program
            sys.exit(f"cannot compare: {error}")


if __name__ == "__main__":
    main()
