"""Engine servers as real processes: they start, are killed, come back with the right weights."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from fleet_parts import assert_sampled, until, weights
from gateway_parts import control, tokenizer

from palestra.errors import EngineError
from palestra.events import MemoryEvents
from palestra.policy.engines import keeper
from palestra.policy.engines.fleet import Fleet, Place
from palestra.policy.engines.processes import Launched
from palestra.policy.engines.sglang import SGLangServer
from palestra.policy.gateway import Gateway, running_gateway
from palestra.policy.rendering import load_renderer
from palestra.records import Generation, Trace
from palestra.serving import listen
from palestra.wire import trace_from_wire

FAKE = (sys.executable, "-m", "palestra.policy.engines.sglang_fake", "--hashed")


def free_port() -> int:
    listener = listen("127.0.0.1", 0, doing="test")
    port: int = listener.getsockname()[1]
    listener.close()
    return port


def launched(tmp_path: Path, *command: str, **options: Any) -> Launched:
    return Launched(command, log=tmp_path / "engine.log", **options)


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


async def pids_in(file: Path, number: int) -> list[int]:
    pids: list[int] = []

    def are_told() -> bool:
        pids[:] = map(int, file.read_text().split()) if file.exists() else ()
        return len(pids) == number

    await until(are_told)
    return pids


async def test_a_process_ends_with_all_that_it_started(tmp_path: Path) -> None:
    told = tmp_path / "pids"
    # Both are deaf to SIGTERM, and the second is nobody's child when the first is killed.
    script = f"trap '' TERM; sleep 600 & echo $! $$ > {told}; wait; wait"
    host = launched(tmp_path, "bash", "-c", script, grace_s=0.3)
    await host.up()
    await host.up()
    pids = await pids_in(told, 2)
    assert all(map(is_running, pids))
    await host.down()
    await until(lambda: not any(map(is_running, pids)))
    assert host.pid is None


@pytest.mark.parametrize("victim", ["parent", "keeper", "command"])
async def test_a_kill_leaves_nothing_behind(tmp_path: Path, victim: str) -> None:
    told = tmp_path / "pids"
    script = f"sleep 600 & echo $! $$ > {told}; wait"
    if victim == "command":
        script = f"sleep 600 & echo $! $$ > {told}; kill -9 $$"
    program = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)\n"
        "print(p.pid, flush=True)\n"
        "time.sleep(600)"
    )
    command = (sys.executable, "-I", keeper.__file__, "5", "bash", "-c", script)
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-c", program), *command, stdout=subprocess.PIPE
    )
    try:
        assert parent.stdout is not None
        keeper_pid = int(await parent.stdout.readline())
        sleeping, shell = await pids_in(told, 2)
        if victim != "command":
            os.kill(parent.pid if victim == "parent" else keeper_pid, signal.SIGKILL)
        await until(lambda: not is_running(shell))
        if victim == "keeper":  # whose death the shell alone is told of
            os.kill(sleeping, signal.SIGKILL)
        await until(lambda: not is_running(sleeping))
    finally:
        if parent.returncode is None:
            parent.kill()
        await parent.communicate()


async def test_a_start_that_fails_says_what_was_printed_last(tmp_path: Path) -> None:
    script = "echo CUDA out of memory; sleep 0.1; exit 3"
    host = launched(tmp_path, "bash", "-c", script)
    place = Place(server=SGLangServer(f"http://127.0.0.1:{free_port()}"), host=host)
    fleet = Fleet([place], weights=tmp_path, max_context=64)
    with pytest.raises(EngineError, match=r"ended with code 3 before .*\n.*CUDA out of memory"):
        await fleet.__aenter__()
    missing = launched(tmp_path, str(tmp_path / "nothing"))
    await missing.up()
    assert await missing.gone() == "ended with code 127"
    assert "nothing" in missing.last_words()
    assert "CUDA" not in missing.last_words(), "words of another start"


async def test_a_start_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    host = launched(tmp_path, "bash", "-c", "echo loading; sleep 600", start_timeout_s=0.5)
    place = Place(server=SGLangServer(f"http://127.0.0.1:{free_port()}"), host=host)
    fleet = Fleet([place], weights=tmp_path, max_context=64)
    with pytest.raises(EngineError, match=r"s after its start\n    loading"):
        await fleet.__aenter__()
    assert host.pid is None


# --- a gateway in front of processes that are killed --------------------------------


async def converse(client: httpx.AsyncClient, number: int, done: asyncio.Event) -> Trace:
    """Turn after turn until ``done``, and one more."""
    opened = (await client.post("/sessions", json={"max_new_tokens": 24})).json()
    history: list[dict[str, Any]] = [{"role": "user", "content": f"ab {number}"}]
    is_last = False
    while not is_last:
        is_last = done.is_set()
        answer = await client.post(
            f"{opened['base_url']}/chat/completions", json={"messages": history}
        )
        assert answer.status_code == 200, answer.text
        message = answer.json()["choices"][0]["message"]
        history += [message, {"role": "user", "content": "on"}]
    taken = await client.get(f"/sessions/{opened['session_id']}?take=true")
    return trace_from_wire(taken.json())


def assert_exact(trace: Trace, folders: dict[int, Path]) -> None:
    """Every id in the ledger was sampled by the weights whose version stands beside it."""
    for turn in trace.turns:
        assert_sampled(
            list(trace.prompt_ids(turn)),
            Generation(segments=turn.segments, finish_reason=turn.finish_reason),
            folders,
            (control("<|im_end|>"),),
        )


async def test_kill_9_costs_no_request_and_mixes_no_weights(tmp_path: Path) -> None:
    folders = {n: weights(tmp_path, n) for n in range(3)}
    events, done = MemoryEvents(), asyncio.Event()
    places = []
    for number in range(2):
        port = free_port()
        address = ("--model-path", str(folders[0]), "--port", str(port), "--pace-s", "0.03")
        address += ("--context-length", "60000")
        host = Launched((*FAKE, *address), log=tmp_path / f"{number}.log", grace_s=3.0)
        places.append(Place(server=SGLangServer(f"http://127.0.0.1:{port}"), host=host))
    fleet = Fleet(places, weights=folders[0], max_context=60_000, events=events)
    tok = tokenizer()
    gateway = Gateway(fleet, load_renderer("chatml", tok), tok, model_name="m")
    async with (
        fleet,
        running_gateway(gateway) as url,
        httpx.AsyncClient(base_url=url, timeout=120) as client,
    ):
        first, second = fleet.members
        keepers = [host.pid for host in (p.host for p in places) if isinstance(host, Launched)]
        talking = [asyncio.create_task(converse(client, n, done)) for n in range(8)]
        await until(lambda: first.in_flight > 0 and second.in_flight > 0)
        assert keepers[0] is not None
        os.kill(children(keepers[0])[0], signal.SIGKILL)
        await until(lambda: first.state == "down")
        await fleet.publish(folders[1], 1)  # while one is down
        await until(lambda: first.state == "serving")
        assert (first.version, second.version) == (1, 1)
        talking += [asyncio.create_task(converse(client, n, done)) for n in range(8, 12)]
        await until(lambda: first.in_flight > 0 or any(t.done() for t in talking))
        await fleet.publish(folders[2], 2)
        done.set()
        traces = await asyncio.gather(*talking)
        assert await client.get("/health")
    for trace in traces:
        assert_exact(trace, folders)
    assert {v for t in traces for v in t.policy_versions} == {0, 1, 2}
    assert events.of_kind("engine.replayed"), "nothing was in flight when it was killed"
    assert "signal 9" in events.of_kind("engine.down")[0].fields["reason"]
    ups = [e.fields["version"] for e in events.of_kind("engine.up")]
    assert ups == [0, 0, 1], "the weights of now were there before it served again"
    assert not any(is_running(pid) for pid in keepers if pid)
