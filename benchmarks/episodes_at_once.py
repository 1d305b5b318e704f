"""Sixty-four scripted episodes at once: ours on bubblewrap and docker, theirs on docker.

An episode is a start, the thirty steps of ``containers.py`` and the removal, without a model
and without tests. All start from one image and run the same steps, whose outputs must agree.
The rate is of all episodes together, from the first start to the last removal; theirs are in
as many threads. Nothing but the machine limits how many work at the same time.

    python benchmarks/episodes_at_once.py [--image palestra-test/debian:1] [--episodes 64]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

from containers import STEPS, THEIRS, Place, in_turns, made_places

from palestra.config import SandboxSection
from palestra.errors import PalestraError


class Rate(NamedTuple):
    """How many episodes at once went."""

    episodes_per_minute: float
    command_ms: float
    command_p99_ms: float
    start_ms: float


async def measure(place: Place, number: int) -> tuple[Rate, list[str]]:
    commands_ms: list[float] = []
    starts_ms: list[float] = []

    async def episode() -> list[str]:
        outputs = []
        began_s = time.perf_counter()
        async with place() as run:
            starts_ms.append((time.perf_counter() - began_s) * 1e3)
            for step in STEPS:
                began_s = time.perf_counter()
                outputs.append(await run(step))
                commands_ms.append((time.perf_counter() - began_s) * 1e3)
        return outputs

    began_s = time.perf_counter()
    said = await asyncio.gather(*(episode() for _ in range(number)))
    seconds = time.perf_counter() - began_s
    assert all(outputs == said[0] for outputs in said), "episodes at once disturb each other"
    rate = Rate(
        episodes_per_minute=number / seconds * 60,
        command_ms=median(commands_ms),
        command_p99_ms=quantiles(commands_ms, n=100)[-1],
        start_ms=median(starts_ms),
    )
    return rate, said[0]


async def compare(image: str, number: int, repeats: int, folder: Path) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(number))
    places = await made_places(image, folder)
    rates: dict[str, list[Rate]] = {name: [] for name in places}
    said: list[str] | None = None
    for place in places.values():
        await measure(place, 1)  # what only a first start does: tools found, layers made
    for name in in_turns(list(places), repeats):
        rate, outputs = await measure(places[name], number)
        said = said or outputs
        assert outputs == said, f"{name} answered otherwise: {outputs} and not {said}"
        rates[name].append(rate)
    medians = {name: Rate(*map(median, zip(*each, strict=True))) for name, each in rates.items()}
    report(medians, number)


def report(rates: Mapping[str, Rate], number: int) -> None:
    print(f"load {os.getloadavg()[0]:.1f}; {number} episodes at once, {len(STEPS)} steps each")
    print(f"{'':15} episodes a minute   start ms  command ms   p99 ms  (medians)")
    for name, rate in rates.items():
        print(
            f"{name:15}{rate.episodes_per_minute:18.0f}{rate.start_ms:11.0f}"
            f"{rate.command_ms:12.1f}{rate.command_p99_ms:9.1f}"
        )
    other = rates[THEIRS]
    for name, rate in rates.items():
        if name != THEIRS:
            print(
                f"ratio {name} to {THEIRS}: episodes a minute "
                f"{rate.episodes_per_minute / other.episodes_per_minute:.1f}; p99 of a command "
                f"{other.command_p99_ms / rate.command_p99_ms:.1f} times shorter"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", default=SandboxSection().host_image, help="of the engine")
    parser.add_argument("--episodes", type=int, default=64, help="at once")
    parser.add_argument("--repeats", type=int, default=1, help="rounds of each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # What minisweagent does at its import: greet, and make a folder for its settings.
        os.environ.update(MSWEA_SILENT_STARTUP="1", MSWEA_GLOBAL_CONFIG_DIR=folder)
        try:
            asyncio.run(compare(options.image, options.episodes, options.repeats, Path(folder)))
        except (PalestraError, FileNotFoundError) as error:  # no engine, image or docker program
            sys.exit(f"cannot compare: {error}")


if __name__ == "__main__":
    main()
