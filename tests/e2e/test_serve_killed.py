"""``palestra serve`` and one of its sandboxes, killed with 32 episodes at work."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from palestra.environment.agents.fake_model import ScriptedModelServer, ScriptedReply, block
from palestra.environment.sandboxes.processes import command_lines
from palestra.tasks.katas import KataSpec, generate_rows

NUM = 32
SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"


class Hung:
    """A policy whose commands sleep, until it is told to let go."""

    def __init__(self) -> None:
        self.let_go = False
        self.num_asked = 0

    def __call__(self, _: Any) -> str | ScriptedReply:
        self.num_asked += 1
        return block(SUBMIT if self.let_go else "sleep 7321")


@asynccontextmanager
async def serving(state: Path, policy_url: str) -> AsyncIterator[tuple[int, httpx.AsyncClient]]:
    """The command as a process of its own; its pid and a client of it."""
    options = ["--agent", "mini", "--prompt", "kata", "--sandbox", "bubblewrap", "--port", "0"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "palestra", "serve", *options),
        *("--concurrency", str(NUM), "--policy-base-url", policy_url),
        env={**os.environ, "PALESTRA_STATE": str(state)},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        line = b""
        while b"serving on " not in line:
            line = await asyncio.wait_for(process.stderr.readline(), 60)
            assert line, "the server ended before it served"
        url = line.split()[-1].decode()
        async with httpx.AsyncClient(base_url=url, timeout=120) as http:
            yield process.pid, http
    finally:
        if process.returncode is None:
            process.terminate()
            await asyncio.wait_for(process.wait(), 30)


async def until(holds: Callable[[], bool], *, what: str, limit_s: float = 60) -> None:
    for _ in range(int(limit_s / 0.05)):
        if holds():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {limit_s:g} s: {what}")


def start_all(http: httpx.AsyncClient, num: int) -> list[asyncio.Task[httpx.Response]]:
    rows = generate_rows(KataSpec(split="train", num_tasks=num, levels=(0,)))
    bodies = [{**row, "responses_create_params": {"input": []}} for row in rows]
    return [asyncio.create_task(http.post("/run", json=body)) for body in bodies]


def sleepers() -> list[int]:
    return [pid for pid, words in command_lines() if list(words[:2]) == ["sleep", "7321"]]


def left_behind(state: Path) -> list[str]:
    """Processes and folders of sandboxes."""
    left = [str(path) for sub in ("run", "leases") for path in (state / sub).glob("*")]
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    left += [line for line in mounts if str(state) in line]
    return left + [
        f"{pid}: {words}"
        for pid, words in command_lines()
        if any(str(state) in word for word in words) and pid != os.getpid()
    ]


async def test_a_server_killed_with_32_episodes_at_work_leaves_nothing(tmp_path: Path) -> None:
    state, policy = tmp_path / "state", Hung()
    async with ScriptedModelServer(policy) as model:
        async with serving(state, model.base_url) as (pid, http):
            requests = start_all(http, NUM)
            await until(lambda: len(sleepers()) == NUM, what="all 32 run their command")
            os.kill(pid, signal.SIGKILL)
            answers = await asyncio.gather(*requests, return_exceptions=True)
        assert all(isinstance(answer, httpx.HTTPError) for answer in answers), answers
        policy.let_go = True
        async with serving(state, model.base_url) as (_, http):
            await until(lambda: not sleepers(), what="no process of the killed server is left")
            await until(lambda: not left_behind(state), what=f"gone: {left_behind(state)}")
            again = await asyncio.gather(*start_all(http, 4))
        assert [answer.json()["outcome"] for answer in again] == ["unsolved"] * 4


async def test_a_sandbox_killed_from_outside_is_one_infra_error(tmp_path: Path) -> None:
    policy = Hung()
    async with (
        ScriptedModelServer(policy) as model,
        serving(tmp_path / "state", model.base_url) as (_, http),
    ):
        requests = start_all(http, NUM)
        await until(lambda: len(sleepers()) == NUM, what="all 32 run their command")
        policy.let_go = True
        victim = outermost(sleepers()[0])
        os.kill(victim, signal.SIGKILL)
        done, _ = await asyncio.wait(requests, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        (first,) = done
        answer = first.result()
        assert (answer.status_code, answer.json()["outcome"]) == (200, "infra_error")
        assert answer.json()["mask_sample"] is True
        assert answer.json()["error"]
        # The commands of the others end; only they do.
        for pid in sleepers():
            os.kill(pid, signal.SIGTERM)
        others = [r.result() for r in (await asyncio.wait(requests, timeout=60))[0] if r != first]
    assert [answer.json()["outcome"] for answer in others] == ["unsolved"] * (NUM - 1)


def outermost(pid: int) -> int:
    """The bwrap that the server started, above the command ``pid``."""
    found = None
    while pid > 1:
        if "bwrap" in "".join(dict(command_lines()).get(pid, ())[:1]):
            found = pid
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert found is not None, "no bwrap above the command"
    return found
