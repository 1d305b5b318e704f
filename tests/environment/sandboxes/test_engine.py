"""What is the container backends' own: reaping, images, and an engine that fails."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from palestra.config import SandboxSection
from palestra.environment.sandboxes.engine import OWNER_LABEL, EngineBackend
from palestra.environment.sandboxes.engine_api import DOCKER, PODMAN, EngineKind, open_engine
from palestra.environment.sandboxes.protocol import SandboxLimits, SandboxSpec
from palestra.errors import SandboxStartError, SandboxUnavailable
from palestra.records import HOST_IMAGE

IMAGE = os.environ.get("PALESTRA_TEST_IMAGE", SandboxSection().host_image)
SERVER = """
import asyncio, sys
from palestra.environment.sandboxes.engine import EngineBackend
from palestra.environment.sandboxes.engine_api import DOCKER, PODMAN
from palestra.environment.sandboxes.protocol import SandboxSpec
from palestra.records import HOST_IMAGE

async def main():
    kind = {"docker": DOCKER, "podman": PODMAN}[sys.argv[1]]
    backend = EngineBackend(kind, host_image=sys.argv[2])
    async with backend.start(SandboxSpec(image=HOST_IMAGE, workdir="/tmp")) as box:
        print(box.sandbox_id, flush=True)
        await box.run("sleep 600", timeout_s=600)

asyncio.run(main())
"""


@pytest.fixture(scope="module", params=[DOCKER, PODMAN], ids=lambda kind: str(kind.name))
def kind(request: pytest.FixtureRequest) -> EngineKind:
    """An engine that works here; one trial start for all tests."""
    assert isinstance(request.param, EngineKind)
    try:
        asyncio.run(EngineBackend(request.param, host_image=IMAGE).check())
    except SandboxUnavailable as error:
        pytest.skip(f"{request.param.name}: {error}")
    return request.param


@pytest.fixture
def backend(kind: EngineKind) -> EngineBackend:
    return EngineBackend(kind, host_image=IMAGE)


async def containers(kind: EngineKind) -> str:
    async with open_engine(kind) as api:
        return str([container.labels for container in await api.labelled(OWNER_LABEL)])


async def test_what_a_killed_server_left_is_reaped_by_the_next(
    kind: EngineKind, backend: EngineBackend
) -> None:
    server = await asyncio.to_thread(
        subprocess.Popen,
        [sys.executable, "-c", SERVER, kind.name, IMAGE],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    assert await asyncio.to_thread(server.stdout.readline)
    owned = f":{server.pid}:"
    await EngineBackend(kind, host_image=IMAGE).check()
    assert owned in await containers(kind), "the living lose nothing"
    server.send_signal(signal.SIGKILL)
    server.wait()
    server.stdout.close()
    await backend.check()
    assert owned not in await containers(kind)


async def test_missing_workdir(backend: EngineBackend) -> None:
    image = SandboxSpec(image=IMAGE, workdir="/nowhere")
    with pytest.raises(SandboxStartError, match="has no directory /nowhere"):
        async with backend.start(image):
            pass


async def test_memory_and_processes_are_limited(backend: EngineBackend) -> None:
    limits = SandboxLimits(memory_bytes=128 << 20, num_pids=48)
    spec = SandboxSpec(image=HOST_IMAGE, workdir="/tmp", limits=limits)
    async with backend.start(spec) as box:
        done = await box.run("python3 -c 'bytearray(1 << 30)'", timeout_s=30)
        assert done.exit_code in (1, 137), done
        many = "import subprocess as s\nfor _ in range(200): s.Popen(['sleep', '20'])"
        done = await box.run(f'python3 -c "{many}"', timeout_s=30)
        assert "Resource temporarily unavailable" in done.output


async def test_a_missing_image_says_how_to_get_it(kind: EngineKind) -> None:
    with pytest.raises(SandboxUnavailable, match=f"{kind.name} pull palestra-test/none"):
        await EngineBackend(kind, host_image="palestra-test/none").check()


async def test_an_engine_that_answers_nonsense(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\nnope")
        await writer.drain()
        writer.close()

    socket = tmp_path / "s"
    kind = EngineKind(name="docker", variable="NO_SUCH", sockets=(str(socket),), hint="")
    async with await asyncio.start_unix_server(answer, socket):
        with pytest.raises(SandboxUnavailable, match="status 500: nope"):
            await EngineBackend(kind, host_image="any").check()
