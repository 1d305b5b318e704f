"""``palestra serve``: clients that hang up, and signals. Whatever was at work leaves nothing.

On bubblewrap in any case; on docker and podman where ``$PALESTRA_TEST_IMAGE`` says so.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import httpx
import pytest
from serve_process import (
    BACKENDS,
    ENGINES,
    IMAGE,
    PATIENCE_S,
    Hung,
    Served,
    containers_of,
    left_behind,
    needs_engine,
    serving,
    until,
)

from palestra.environment.agents.fake_model import ScriptedModelServer
from palestra.environment.sandboxes.engine_api import open_engine

FREED_WITHIN_S = 2.0
NUM = 3
OPTIONS = ("--agent", "mini", "--prompt", "kata", "--concurrency", str(NUM))

pytestmark = [pytest.mark.parametrize("backend", BACKENDS), pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def _has_engine(backend: str) -> None:
    needs_engine(backend)


async def removal_s(backend: str) -> float:
    """What the engine takes now to remove as many containers as there are episodes."""
    if backend not in ENGINES:
        return 0.0
    async with open_engine(ENGINES[backend]) as api:
        # Podman's service else asks for more than some hosts grant.
        limits = [{"Name": name, "Soft": 1024, "Hard": 1024} for name in ("nofile", "nproc")]
        settings = {"Image": IMAGE, "Cmd": ["sleep", "1000"], "HostConfig": {"Ulimits": limits}}
        names = [f"palestra-yardstick-{os.getpid()}-{number}" for number in range(NUM)]
        try:
            for name in names:
                await api.start(await api.create(name, settings))
        finally:
            began_s = time.monotonic()
            await asyncio.gather(*map(api.remove, names))
        return time.monotonic() - began_s


async def hang_up(requests: list[asyncio.Task[httpx.Response]]) -> None:
    for request in requests:
        request.cancel()
    await asyncio.gather(*requests, return_exceptions=True)


async def everything(server: Served, state: Path, policy: Hung, backend: str) -> list[object]:
    """All that episodes hold: processes, containers, folders, places at work."""
    held: list[object] = [*policy.sleepers(), *left_behind(state)]
    held += await containers_of(backend, server.pid)
    return held + list((await server.status())["episodes"])


async def test_a_client_that_hangs_up_frees_everything(tmp_path: Path, backend: str) -> None:
    state, policy = tmp_path / "state", Hung()
    async with (
        ScriptedModelServer(policy) as model,
        serving(tmp_path, backend, *OPTIONS, "--policy-base-url", model.base_url) as s,
    ):
        requests = s.start(NUM)
        await until(lambda: len(policy.sleepers()) == NUM, what="all run their command")
        limit_s = FREED_WITHIN_S + 3 * await removal_s(backend)
        assert await everything(s, state, policy, backend)
        began_s = time.monotonic()
        await hang_up(requests)
        while held := await everything(s, state, policy, backend):
            assert time.monotonic() - began_s < limit_s, held
            await asyncio.sleep(0.05)


async def test_hanging_up_while_sandboxes_start_frees_everything(
    tmp_path: Path, backend: str
) -> None:
    state, policy = tmp_path / "state", Hung()
    async with (
        ScriptedModelServer(policy) as model,
        serving(tmp_path, backend, *OPTIONS, "--policy-base-url", model.base_url) as s,
    ):
        for delay_s in (0.0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4):
            requests = s.start(NUM + 1)  # one is in the queue
            await asyncio.sleep(delay_s)
            await hang_up(requests)
        deadline_s = time.monotonic() + PATIENCE_S
        while held := await everything(s, state, policy, backend):
            assert time.monotonic() < deadline_s, held
            await asyncio.sleep(0.05)
        policy.let_go = True
        answer = (await s.start(1)[0]).json()
    assert answer["outcome"] == "unsolved", answer["error"]


async def test_drain_waits_for_episodes_that_end(tmp_path: Path, backend: str) -> None:
    policy = Hung()
    async with (
        ScriptedModelServer(policy) as model,
        serving(tmp_path, backend, *OPTIONS, "--policy-base-url", model.base_url) as s,
    ):
        requests = s.start(NUM)
        await until(lambda: len(policy.sleepers()) == NUM, what="all run their command")
        os.kill(s.pid, signal.SIGTERM)
        await until(lambda: "stopping" in s.said[-1], what="the signal was taken")
        with pytest.raises(httpx.HTTPError):
            (await s.http.post("/run", json={})).raise_for_status()
        policy.let_go = True
        for pid in policy.sleepers():
            os.kill(pid, signal.SIGTERM)
        answers = await asyncio.gather(*requests)
        await asyncio.wait_for(s.process.wait(), PATIENCE_S)
    assert [answer.json()["outcome"] for answer in answers] == ["unsolved"] * NUM
    assert s.process.returncode == 0, s.said
    assert left_behind(tmp_path / "state") == []
    assert await containers_of(backend, s.pid) == []


@pytest.mark.parametrize("how", ["the time-out", "a second signal"])
async def test_drain_is_cut_short(tmp_path: Path, backend: str, how: str) -> None:
    state, policy = tmp_path / "state", Hung()
    drain = ("--drain-timeout", "1" if how == "the time-out" else "9999")
    async with ScriptedModelServer(policy) as model:
        options = (*OPTIONS, *drain, "--policy-base-url", model.base_url)
        async with serving(tmp_path, backend, *options) as s:
            requests = s.start(NUM)
            await until(lambda: len(policy.sleepers()) == NUM, what="all run their command")
            os.kill(s.pid, signal.SIGTERM)
            await until(lambda: "stopping" in s.said[-1], what="the signal was taken")
            if how == "a second signal":
                assert len(policy.sleepers()) == NUM, "the first signal did not wait"
                os.kill(s.pid, signal.SIGTERM)
            answers = await asyncio.gather(*requests)
            await asyncio.wait_for(s.process.wait(), PATIENCE_S)
            assert policy.sleepers() == []
            assert left_behind(state) == []
            assert await containers_of(backend, s.pid) == []
    assert [answer.status_code for answer in answers] == [503] * NUM
    assert "stopping" in answers[0].json()["detail"]
    assert s.process.returncode == (0 if how == "the time-out" else 130), s.said
    assert not any("Traceback" in line for line in s.said), s.said
