"""A fake SGLang server as a program: an engine of ours behind SGLang's HTTP shapes.

::

    python -m palestra.policy.engines.sglang_fake --model-path FOLDER --port 30000

For tests and for machines without a GPU. It takes SGLang's arguments, of which it heeds the
model's folder, the address, the context's length and the stamp of the weights; and, as SGLang,
it keeps the ids of what it is told to abort. What it samples follows from the weights that it
was told to read: from the model itself, or with ``--hashed`` from the bytes of the files,
which starts at once.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from palestra.config import EngineSection
from palestra.policy.engines.hashed import HashedEngine
from palestra.policy.engines.protocol import Engine
from palestra.policy.engines.sglang_front import running_front

CHUNK_IDS = 4


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="sglang_fake")
    parser.add_argument("--model-path", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--context-length", type=int, default=1024)
    parser.add_argument("--weight-version", default="default")
    parser.add_argument("--hashed", action="store_true", help="no model, but its files' hash")
    parser.add_argument("--start-s", type=float, default=0.0, help="seconds to take for a start")
    parser.add_argument("--pace-s", type=float, default=0.0, help="seconds after each few ids")
    options, _ = parser.parse_known_args(argv)
    asyncio.run(_serve(options))


async def _serve(options: argparse.Namespace) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    sys.stdout.write(f"reading {options.model_path}\n")
    sys.stdout.flush()
    await asyncio.sleep(options.start_s)
    async with (
        _engine(options) as engine,
        running_front(
            engine,
            host=options.host,
            port=options.port,
            chunk_ids=CHUNK_IDS,
            pace_s=options.pace_s,
            stamp=options.weight_version,
        ) as running,
    ):
        sys.stdout.write(f"The server is fired up and ready to roll at {running.url}\n")
        sys.stdout.flush()
        await stopped.wait()


@asynccontextmanager
async def _engine(options: argparse.Namespace) -> AsyncIterator[Engine]:
    if options.hashed:
        yield HashedEngine(options.model_path, max_context=options.context_length)
        return
    from palestra.policy.engines.local import LocalEngine

    section = EngineSection(max_batch=32, num_threads=1)
    async with LocalEngine(
        options.model_path, section=section, max_context=options.context_length, device="cpu"
    ) as engine:
        yield engine


if __name__ == "__main__":
    main()
