"""``palestra serve`` as a process of its own, and what it leaves on the machine."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from palestra.environment.agents.fake_model import block
from palestra.environment.sandboxes.engine import OWNER_LABEL
from palestra.environment.sandboxes.engine_api import DOCKER, PODMAN, open_engine
from palestra.environment.sandboxes.processes import command_lines
from palestra.tasks.katas import KataSpec, generate_rows

IMAGE = os.environ.get("PALESTRA_TEST_IMAGE")
ENGINES = {"docker": DOCKER, "podman": PODMAN}
BACKENDS = ("bubblewrap", "docker", "podman")
SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
PATIENCE_S = 240.0
"""For what takes seconds on a machine that does nothing else."""


def needs_engine(backend: str) -> None:
    """Skip (or fail, where everything must be there) without the engine's test image."""
    if backend in ENGINES and not IMAGE:
        missing = f"$PALESTRA_TEST_IMAGE names no image for {backend}"
        if os.environ.get("PALESTRA_TEST_REQUIRE"):
            pytest.fail(missing)
        pytest.skip(missing)


class Hung:
    """A policy whose commands sleep, until it is told to let go.

    Attributes:
        seconds: names the sleepers of this test among all processes of the machine.
    """

    def __init__(self) -> None:
        self.let_go = False
        self.seconds = str(100_000_000 + secrets.randbelow(900_000_000))

    def __call__(self, _: Any) -> str:
        return block(SUBMIT if self.let_go else f"sleep {self.seconds}")

    def sleepers(self) -> list[int]:
        """The pids of its commands."""
        wanted = ["sleep", self.seconds]
        return [pid for pid, words in command_lines() if list(words[:2]) == wanted]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A server that takes requests."""

    process: asyncio.subprocess.Process
    http: httpx.AsyncClient
    said: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    async def status(self) -> dict[str, Any]:
        return dict((await self.http.get("/status")).json())

    def start(self, num: int) -> list[asyncio.Task[httpx.Response]]:
        """Post that many katas."""
        return [asyncio.create_task(self.http.post("/run", json=body)) for body in bodies(num)]


def bodies(num: int) -> list[dict[str, Any]]:
    """Requests for katas."""
    rows = generate_rows(KataSpec(split="train", num_tasks=num, levels=(0,)))
    return [{**row, "responses_create_params": {"input": []}} for row in rows]


def command(folder: Path, backend: str, options: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of a server whose state is in ``folder / "state"``."""
    recipe = folder / "recipe.toml"  # its path must not look like the state's
    recipe.write_text(f'[sandbox]\nhost_image = "{IMAGE or "unused"}"\n')
    words = [sys.executable, "-m", "palestra", "serve", "--recipe", str(recipe), "--port", "0"]
    words += ["--sandbox", backend, *options]
    return words, {**os.environ, "PALESTRA_STATE": str(folder / "state")}


@asynccontextmanager
async def serving(
    folder: Path, backend: str, *options: str, **variables: str
) -> AsyncIterator[Served]:
    """Run the command until the block ends, which also ends what is at work."""
    words, env = command(folder, backend, options)
    process = await asyncio.create_subprocess_exec(
        *words, env=env | variables, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    said: list[str] = []
    reading: asyncio.Task[None] | None = None
    try:
        while not said or "serving on " not in said[-1]:
            line = await asyncio.wait_for(process.stderr.readline(), PATIENCE_S)
            assert line, f"the server ended before it served: {said}"
            said.append(line.decode())
        reading = asyncio.create_task(_read(process.stderr, said))
        async with httpx.AsyncClient(
            base_url=said[-1].split()[-1], timeout=PATIENCE_S, trust_env=False
        ) as http:
            yield Served(process=process, http=http, said=said)
    finally:
        await _ended(process)
        if reading is not None:
            await reading


async def _read(stream: asyncio.StreamReader, said: list[str]) -> None:
    while line := await stream.readline():
        said.append(line.decode())


async def _ended(process: asyncio.subprocess.Process) -> None:
    # The second signal is for episodes that a failed test left at work.
    for _ in range(2):
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 30)
            except TimeoutError:
                continue
    if process.returncode is None:
        process.kill()
        await process.wait()


async def until(
    holds: Callable[[], bool], *, what: Callable[[], object] | str, limit_s: float = PATIENCE_S
) -> None:
    """Wait until ``holds()``."""
    for _ in range(int(limit_s / 0.05)):
        if holds():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {limit_s:g} s: {what if isinstance(what, str) else what()}")


async def containers_of(backend: str, pid: int) -> list[str]:
    """Containers that belong to the server ``pid``."""
    if backend not in ENGINES:
        return []
    async with open_engine(ENGINES[backend]) as api:
        found = await api.labelled(OWNER_LABEL)
    return [c.container_id for c in found if f":{pid}:" in c.labels[OWNER_LABEL]]


def left_behind(state: Path) -> list[str]:
    """Processes, mounts and folders of sandboxes."""
    left = [str(path) for sub in ("run", "leases") for path in (state / sub).glob("*")]
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    left += [line for line in mounts if str(state) in line]
    return left + [
        f"{pid}: {words}"
        for pid, words in command_lines()
        if any(str(state) in word for word in words) and pid != os.getpid()
    ]
