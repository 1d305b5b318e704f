"""What a user of ``palestra serve`` is told when something is wrong: what, where, what to do.

A real process and a plain HTTP client. An episode that fails is an answer (200, masked), never
an HTTP error, since clients ask again for those.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from serve_process import Served, bodies, command, needs_engine, serving

from palestra.environment.agents.fake_model import block
from palestra.serving import QuietServer

SUBMIT = block("echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT")
MINI = ("--agent", "mini", "--prompt", "kata")
GOLD = ("--agent", "gold")

_OCI = "application/vnd.oci.image"
MANIFEST: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": f"{_OCI}.manifest.v1+json",
    "config": {"mediaType": f"{_OCI}.config.v1+json", "digest": f"sha256:{1:064x}", "size": 2},
    "layers": [{"mediaType": f"{_OCI}.layer.v1.tar", "digest": f"sha256:{2:064x}", "size": 10_000}],
}

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")


def kata(**changes: Any) -> dict[str, Any]:
    return bodies(1)[0] | changes


def imaged(image: str) -> dict[str, Any]:
    """A request for a task that has an image instead of files."""
    row = kata(image=image)
    del row["files"]
    return row


def dead_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/v1"


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder]).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(disk: Path) -> Path:
    path = disk / "fill"
    try:
        with path.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        return path


async def refused(folder: Path, *options: str, **variables: str) -> str:
    """The only line of a server that does not start."""
    words, env = command(folder, "bubblewrap", options)
    process = await asyncio.create_subprocess_exec(
        *words, env=env | variables, stderr=asyncio.subprocess.PIPE
    )
    _, stderr = await asyncio.wait_for(process.communicate(), 120)
    said = stderr.decode().strip().splitlines()
    assert process.returncode == 2, said
    errors = [line for line in said if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert "Traceback" not in stderr.decode()
    return errors[0]


async def rejected(server: Served, body: Any) -> tuple[list[str], str]:
    """Where a 422 says that the request is wrong, and how."""
    sent = {"content": body} if isinstance(body, bytes) else {"json": body}
    response = await server.http.post("/run", **sent)
    assert response.status_code == 422, response.text
    first = response.json()["detail"][0]
    return first["loc"], first["msg"]


async def masked(server: Served, body: dict[str, Any]) -> tuple[str, str]:
    """The exit status and the error of an episode that failed without the policy's fault."""
    response = await server.http.post("/run", json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert (answer["outcome"], answer["mask_sample"]) == ("infra_error", True), answer["outcome"]
    assert answer["reward"] == 0.0
    return answer["info"]["exit_status"], answer["error"]


async def test_what_is_wrong_with_a_request(tmp_path: Path) -> None:
    fine = dead_url()
    wrong: list[tuple[Any, list[str], tuple[str, ...]]] = [
        (b"", ["body"], ("Invalid JSON",)),
        (b"{oops", ["body"], ("Invalid JSON", "column 2")),
        (b"[]", ["body"], ("must be a JSON object",)),
        ({}, ["body", "instance_id"], ("missing",)),
        (
            {"instance_id": "a__b-1", "responses_create_params": {"input": []}},
            ["body", "instance_id"],
            ("problem_statement", "whole row", "--tasks"),
        ),
        (kata(FAIL_TO_PASS="t.py::a"), ["body", "FAIL_TO_PASS"], ("JSON of a list",)),
        (
            kata(sampling_params={"temperature": -1}),
            ["body", "sampling_params", "temperature"],
            ("greater than or equal to 0",),
        ),
        (kata(), ["body", "sglang_url"], ("send sglang_url", "--policy-base-url")),
        (
            kata(sglang_url="http://8.8.8.8/v1"),
            ["body", "sglang_url"],
            ("8.8.8.8", "private network", "environment.allow_hosts"),
        ),
        (
            kata(sglang_url="http://169.254.169.254/v1"),
            ["body", "sglang_url"],
            ("169.254.169.254", "link-local", "never"),
        ),
        (kata(sglang_url=fine.removesuffix("/v1")), ["body", "sglang_url"], ("end in /v1",)),
    ]
    async with serving(tmp_path, "bubblewrap", *MINI) as server:
        for body, where, says in wrong:
            loc, message = await rejected(server, body)
            assert loc == where, (body, message)
            for text in says:
                assert text in message, message
        assert (await server.status())["episodes"] == []


async def test_a_policy_that_is_not_there(tmp_path: Path) -> None:
    url = dead_url()
    async with serving(tmp_path, "bubblewrap", *MINI) as server:
        status, error = await masked(server, kata(sglang_url=url))
    assert status == "ModelUnavailable"
    assert url in error
    assert "is it running" in error


async def test_tokens(tmp_path: Path) -> None:
    line = await refused(tmp_path, *GOLD, "--host", "0.0.0.0")
    for text in ("0.0.0.0", "needs a token", "--token", "--host 127.0.0.1"):
        assert text in line, line
    async with serving(tmp_path, "bubblewrap", *GOLD, PALESTRA_TOKEN="s3cret") as server:
        missing = await server.http.post("/run", json=kata())
        wrong = await server.http.post("/run", json=kata(), headers={"Authorization": "Bearer x"})
        right = await server.http.post("/run", json=kata(), auth=("x", "s3cret"))
    assert (missing.status_code, wrong.status_code) == (401, 401)
    assert "wants its token: send it as Authorization: Bearer" in missing.json()["detail"]
    assert "not the server's token" in wrong.json()["detail"]
    assert (right.status_code, right.json()["reward"]) == (200, 1.0)


@needs_root
async def test_a_full_disk_under_the_state(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        filling = fill(disk)
        line = await refused(tmp_path, *GOLD, PALESTRA_STATE=str(disk / "state"))
        assert "disk is full" in line, line
        assert str(disk) in line, line
        filling.unlink()
    with small_disk(tmp_path / "later", "1m") as disk:
        state = str(disk / "state")
        async with serving(tmp_path, "bubblewrap", *GOLD, PALESTRA_STATE=state) as server:
            filling = fill(disk)
            status, error = await masked(server, kata())
            filling.unlink()
            again = (await server.http.post("/run", json=kata())).json()
    assert status == "HostError"
    for text in ("the disk is full", str(disk), "free some space"):
        assert text in error, error
    assert again["reward"] == 1.0, "the server did not get over it"


@needs_root
async def test_a_full_disk_under_the_images(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        options = (*GOLD, "--images", str(disk / "images"))
        async with registry() as host, serving(tmp_path, "bubblewrap", *options) as server:
            status, error = await masked(server, imaged(f"{host}/some/image:1"))
    assert status == "HostError"
    for text in ("some/image", str(disk), "kept in reserve", "free some space", "images prune"):
        assert text in error, error


@asynccontextmanager
async def registry() -> AsyncIterator[str]:
    """A registry that has images ``some/image`` (of a layer that never comes) and no others."""
    app = FastAPI()

    @app.get("/v2/{path:path}")
    async def get(path: str) -> JSONResponse:
        if not path:
            return JSONResponse({})
        if path.startswith("some/image/manifests/"):
            return JSONResponse(MANIFEST, media_type=MANIFEST["mediaType"])
        error = {"code": "MANIFEST_UNKNOWN", "message": "manifest unknown", "detail": {}}
        return JSONResponse({"errors": [error]}, status_code=404)

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False)
    server = QuietServer(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await running
        listener.close()


@pytest.mark.parametrize("backend", ["bubblewrap", "docker", "podman"])
async def test_an_unknown_image(tmp_path: Path, backend: str) -> None:
    needs_engine(backend)
    options = (*GOLD, "--images", str(tmp_path / "images"))
    async with registry() as host, serving(tmp_path, backend, *options) as server:
        status, error = await masked(server, imaged(f"{host}/nobody/nothing:1"))
    assert status == "ImageError"
    assert f"no image {host}/nobody/nothing:1" in error
    assert "check its name and tag" in error
