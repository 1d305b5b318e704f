"""``palestra serve`` and one of its sandboxes, killed with episodes at work.

On bubblewrap in any case; on docker and podman where
``tools/test_engines.sh`` has brought them up (``$PALESTRA_TEST_IMAGE`` says so).
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import httpx
import pytest
from serve_process import (
    BACKENDS,
    PATIENCE_S,
    Hung,
    containers_of,
    left_behind,
    needs_engine,
    serving,
    until,
)

from palestra.environment.agents.fake_model import ScriptedModelServer

NUM = 32
# What is to be seen takes two, and an engine starts containers one after the other: each
# episode needs two, which are a second or more on a machine that has other work.
NUM_BESIDE_A_KILLED_ONE = {"bubblewrap": 32, "docker": 8, "podman": 8}
SHIMS = ("containerd-shim", "conmon")
OPTIONS = ("--agent", "mini", "--prompt", "kata", "--concurrency", str(NUM))

pytestmark = [pytest.mark.parametrize("backend", BACKENDS), pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def _has_engine(backend: str) -> None:
    needs_engine(backend)


async def test_a_server_killed_with_32_episodes_at_work_leaves_nothing(
    tmp_path: Path, backend: str
) -> None:
    state, policy = tmp_path / "state", Hung()
    async with ScriptedModelServer(policy) as model:
        options = (*OPTIONS, "--policy-base-url", model.base_url)
        async with serving(tmp_path, backend, *options) as server:
            requests = server.start(NUM)
            await until(lambda: len(policy.sleepers()) == NUM, what="all run their command")
            os.kill(server.pid, signal.SIGKILL)
            answers = await asyncio.gather(*requests, return_exceptions=True)
        assert all(isinstance(answer, httpx.HTTPError) for answer in answers), answers
        policy.let_go = True
        async with serving(tmp_path, backend, *options) as again:
            await until(lambda: not policy.sleepers(), what="no process of the killed one is left")
            await until(lambda: not left_behind(state), what=lambda: f"gone: {left_behind(state)}")
            assert await containers_of(backend, server.pid) == []
            answers = await asyncio.gather(*again.start(4))
        assert [answer.json()["outcome"] for answer in answers] == ["unsolved"] * 4
        assert await containers_of(backend, again.pid) == []


async def test_a_sandbox_killed_from_outside_is_one_infra_error(
    tmp_path: Path, backend: str
) -> None:
    state, policy, num = tmp_path / "state", Hung(), NUM_BESIDE_A_KILLED_ONE[backend]
    async with ScriptedModelServer(policy) as model:
        options = (*OPTIONS, "--policy-base-url", model.base_url)
        async with serving(tmp_path, backend, *options) as server:
            requests = server.start(num)
            await until(lambda: len(policy.sleepers()) == num, what="all run their command")
            policy.let_go = True
            os.kill(outermost(policy.sleepers()[0], server.pid), signal.SIGKILL)
            done, others = await asyncio.wait(
                requests, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED
            )
            assert len(done) == 1, (await server.status())["stages"]
            killed = done.pop().result()
            # The commands of the others end; only they do.
            for pid in policy.sleepers():
                os.kill(pid, signal.SIGTERM)
            answers = await asyncio.gather(*others)
        assert (killed.status_code, killed.json()["outcome"]) == (200, "infra_error")
        assert killed.json()["mask_sample"] is True
        assert killed.json()["info"]["exit_status"] == "SandboxDied", killed.json()["error"]
        assert [answer.json()["outcome"] for answer in answers] == ["unsolved"] * (num - 1)
        assert left_behind(state) == []
        assert await containers_of(backend, server.pid) == []


def outermost(pid: int, server_pid: int) -> int:
    """The process of a sandbox that the server or a container's keeper started."""
    while True:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        assert parent > 1, "no server and no keeper above the command"
        keeper = Path(f"/proc/{parent}/comm").read_text()
        if parent == server_pid or keeper.startswith(SHIMS):
            return pid
        pid = parent
