r"""What training asks of a live SGLang server, in phases; one JSON object per result.

    python benchmarks/live_engine.py --model FOLDER --engine http://127.0.0.1:30000 \
        [--launch "COMMAND --port 30000"] [--phases sessions overhead edge doctor publish kill …]

With ``--launch`` the server is started and ended here, which ``kill`` needs. Every phase has a
time limit, and what fails does not keep the next one from running. Lengths and numbers of
sessions are those of a GPU; on a CPU give smaller ones.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import orjson
from live_edges import edge
from live_overhead import overhead
from live_parts import Bench, until_healthy
from live_sessions import sessions
from live_weights import NUM_PUBLISHED, folders_of, kill, publish

from palestra.policy.engines.host import Elsewhere, Host
from palestra.policy.engines.processes import Launched
from palestra.recipe_files import parse_recipe
from palestra.run.engines import compared

TOLD = ("version", "attention_backend", "sampling_backend", "dtype", "mem_fraction_static")
Phase = Callable[[Bench], AsyncGenerator[dict[str, Any], None]]


def tell(result: dict[str, Any]) -> None:
    """Print one result at once."""
    options = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    print(orjson.dumps(result, option=options, default=repr).decode(), flush=True)


async def run_phase(name: str, bench: Bench, phase: Phase, timeout_s: float) -> bool:
    """Run one phase and tell its results as they come; whether it ended well."""
    began_s = time.monotonic()

    def tell_this(found: dict[str, Any]) -> None:
        tell({"phase": name, "at_s": round(time.monotonic() - began_s, 2), **found})

    try:
        async with asyncio.timeout(timeout_s), aclosing(phase(bench)) as results:
            async for found in results:
                tell_this(found)
    # Whatever it was, the machine is lent by the minute: go on and tell.
    except Exception as error:
        tell_this({"error": f"{type(error).__name__}: {error}"[:2000]})
        return False
    return True


async def server_told(bench: Bench) -> AsyncGenerator[dict[str, Any], None]:
    """What the server says of itself."""
    async with httpx.AsyncClient(base_url=bench.engine, timeout=30, trust_env=False) as http:
        answer = await http.get("/server_info")
    told = answer.json() if answer.is_success else {}
    yield {"status": answer.status_code, **{name: told.get(name) for name in TOLD}}


async def doctor(bench: Bench) -> AsyncGenerator[dict[str, Any], None]:
    """``palestra doctor --engine`` on the server."""
    yield await _doctor(bench, bench.engine, ())


async def doctor_local(bench: Bench) -> AsyncGenerator[dict[str, Any], None]:
    """``palestra doctor --engine local`` on the server's model, beside the server."""
    yield await _doctor(bench, "local", (f"engine.max_batch={bench.options.doctor_sessions}",))


async def _doctor(bench: Bench, engine: str, more: Sequence[str]) -> dict[str, Any]:
    options = bench.options
    settings = [
        f"model.path={options.model}",
        f"model.dtype={options.dtype}",
        f"model.device={options.device}",
        f"model.max_context={options.max_context}",
        f"sampling.max_new_tokens={options.doctor_tokens}",
        *more,
    ]
    command = [sys.executable, "-m", "palestra", "doctor", "--engine", engine, "--json"]
    command += ["--sessions", str(options.doctor_sessions)]
    command += [part for setting in settings for part in ("--set", setting)]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == 0:
        return {"by": "the command", **orjson.loads(out.splitlines()[-1])}
    # A machine without the packages of the terminal still has what the command calls.
    recipe = parse_recipe({}, overrides=settings, origin="options")
    found = await compared(
        recipe, engine, num_sessions=options.doctor_sessions, on_session=lambda: None
    )
    said = err.decode(errors="replace")[-600:]
    return {"by": "its function", "the command said": said, **asdict(found)}


def phases_of(options: argparse.Namespace) -> list[tuple[str, Phase, float]]:
    """The phases that are asked for, in one order, and the seconds each may take."""
    at_once = [
        (f"overhead {n}", lambda bench, n=n: overhead(bench, n), 120.0) for n in options.at_once
    ]
    known: dict[str, list[tuple[str, Phase, float]]] = {
        "sessions": [("sessions", sessions, 120.0)],
        "overhead": at_once,
        "edge": [("edge", edge, 60.0)],
        "doctor": [("doctor", doctor, 150.0)],
        "publish": [("publish", publish, 120.0)],
        "kill": [("kill", kill, 240.0)],  # and ends the server
        "doctor-local": [("doctor-local", doctor_local, 120.0)],
    }
    return [phase for name in known if name in options.phases for phase in known[name]]


@asynccontextmanager
async def running_server(options: argparse.Namespace) -> AsyncIterator[Host]:
    """The server, healthy; weights for later phases are written while it starts."""
    wants_weights = {"publish", "kill"} & set(options.phases)
    writing = asyncio.create_task(
        asyncio.to_thread(folders_of, options.model, options.weights, NUM_PUBLISHED)
        if wants_weights
        else asyncio.sleep(0)
    )
    host: Host = Elsewhere()
    if options.launch:
        command = shlex.split(options.launch)
        host = Launched(command, log=options.log, start_timeout_s=options.start_timeout)
    try:
        began_s = time.monotonic()
        await host.up()
        await until_healthy(options.engine, host, options.start_timeout)
        tell({"phase": "start", "took_s": round(time.monotonic() - began_s, 2)})
        await asyncio.wait({writing})
        yield host
    finally:
        await host.down()


async def measure(options: argparse.Namespace) -> int:
    """Run all phases; how many failed."""
    failed = 0
    async with running_server(options) as host:
        bench = Bench.of(options, host)
        await run_phase("server", bench, server_told, 30.0)
        for name, phase, timeout_s in phases_of(options):
            failed += not await run_phase(name, bench, phase, timeout_s * options.patience)
    return failed


def main() -> None:
    """Measure, and end with the number of phases that failed."""
    with tempfile.TemporaryDirectory(prefix="palestra-live-") as made:
        options = _options()
        options.weights = Path(made)
        sys.exit(asyncio.run(measure(options)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    phases = ("sessions", "overhead", "edge", "doctor", "publish", "kill", "doctor-local")
    add("--model", type=Path, required=True, help="Hugging Face folder that the server serves")
    add("--engine", default="http://127.0.0.1:30000", help="where the server is, or will be")
    add("--launch", help="command that starts the server there")
    add("--log", type=Path, default=Path("live_engine_server.log"), help="of the server")
    add("--start-timeout", type=float, default=300.0, help="seconds until it is healthy")
    add("--phases", nargs="+", choices=phases, default=list(phases))
    add("--text-share", type=float, default=1.0, help="of the usual length of prompts")
    add("--patience", type=float, default=1.0, help="times the phases' limits")
    add("--max-context", type=int, default=32768)
    add("--device", default="cuda", help="of the model that compares")
    add("--dtype", default="bfloat16", help="of the model that compares")
    add("--sessions", type=int, default=256, help="at once, in phase sessions")
    add("--turns", type=int, default=8, help="of a session there")
    add("--at-once", type=int, nargs="+", default=[1, 64, 256], help="in phase overhead")
    add("--overhead-turns", type=int, default=6)
    add("--fixed-ids", type=int, default=128, help="of an answer in phase overhead")
    add("--rounds", type=int, default=3, help="of phase overhead")
    add("--load-sessions", type=int, default=64, help="at once, while weights come")
    add("--load-turns", type=int, default=12)
    add("--scored", type=int, default=16, help="sessions scored by versions")
    add("--doctor-sessions", type=int, default=64)
    add("--doctor-tokens", type=int, default=256, help="of an answer there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
