"""Handing a job to Ray's dashboard over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import io
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response

from palestra.backends.miles.command import Flag, FlagGroup, MilesCommand, MilesJob
from palestra.backends.miles.submit import ClusterUnavailable, submit
from palestra.errors import EngineError
from palestra.serving import QuietServer, listen, wait_started


class Dashboard:
    """The two calls of Ray's dashboard that start a job."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.packages: dict[str, bytes] = {}
        self.jobs: list[dict[str, Any]] = []
        self.refuses = refuses

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        app = FastAPI()

        @app.put("/api/packages/gcs/{name}")
        async def put(name: str, request: Request) -> Response:
            self.packages[name] = await request.body()
            return Response()

        @app.post("/api/jobs/")
        async def post(request: Request) -> Any:
            if self.refuses:
                return Response("Traceback: no such thing", status_code=500)
            self.jobs.append(await request.json())
            return {"job_id": "raysubmit_1", "submission_id": "raysubmit_1"}

        listener = listen("127.0.0.1", 0, doing="test")
        server = QuietServer(uvicorn.Config(app, lifespan="off", log_config=None))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await wait_started(server, serving, error=EngineError)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving
            listener.close()


def job_at(address: str) -> MilesJob:
    flags = (Flag(name="--lr", values=("1e-6",)), Flag(name="--note", values=("it's $HOME",)))
    return MilesJob(
        address=address,
        command=MilesCommand(script="/m/train.py", groups=(FlagGroup(title="all", flags=flags),)),
        env_vars={"A": "1"},
        secrets={"B": "s"},
        files={"miles.yaml": "a: 1\n"},
        conversion=("true",),
    )


async def test_the_folder_goes_up_and_the_job_runs_in_it() -> None:
    dashboard = Dashboard()
    async with dashboard.running() as address:
        assert await submit(job_at(address), name="run") == "raysubmit_1"
        assert await submit(job_at(address), name="run") == "raysubmit_1"
    (name,) = dashboard.packages
    package = dashboard.packages[name]
    assert name == f"_ray_pkg_{hashlib.sha1(package).hexdigest()}.zip"
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        assert {n: archive.read(n) for n in archive.namelist()} == {"miles.yaml": b"a: 1\n"}
    assert dashboard.jobs[0] == {
        "entrypoint": "python3 /m/train.py --lr 1e-6 --note 'it'\"'\"'s $HOME'",
        "runtime_env": {"env_vars": {"A": "1", "B": "s"}, "working_dir": f"gcs://{name}"},
        "metadata": {"name": "run"},
    }


async def test_a_refusal_and_an_absence_are_said_with_the_address(tmp_path: Path) -> None:
    async with Dashboard(refuses=True).running() as address:
        with pytest.raises(ClusterUnavailable, match=r"answered 500: Traceback: no such thing"):
            await submit(job_at(address), name="run")
    with pytest.raises(ClusterUnavailable, match=r"127\.0\.0\.1:9 cannot be reached"):
        await submit(job_at("http://127.0.0.1:9"), name="run")
