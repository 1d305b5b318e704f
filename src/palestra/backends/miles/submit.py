"""Hands a job to a running Ray cluster, through its dashboard's HTTP API.

Ray itself is not needed here: the working folder goes up as a package named by its
content, then the job that runs in it.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from typing import Any

import httpx

from palestra.backends.miles.command import MilesJob
from palestra.errors import ConfigError, InfraError

REQUEST_TIMEOUT_S = 60.0
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first that a zip file can tell


class ClusterUnavailable(InfraError):
    """Ray's dashboard cannot be reached or refuses the job."""


async def submit(job: MilesJob, *, name: str) -> str:
    """Start ``job``; it goes on without us.

    Args:
        job: what to run.
        name: shown in Ray's dashboard.

    Returns:
        Ray's id of the job.

    Raises:
        ConfigError: the address is no URL.
        ClusterUnavailable: the dashboard cannot be reached or refuses.
    """
    package = _package(job.files)
    package_name = f"_ray_pkg_{hashlib.sha1(package, usedforsecurity=False).hexdigest()}.zip"
    try:
        client = httpx.AsyncClient(base_url=job.address, timeout=REQUEST_TIMEOUT_S, trust_env=False)
    except httpx.InvalidURL as error:
        raise ConfigError(f"miles.ray_address {job.address} is no URL: {error}") from None
    async with client:
        await _request(client, "PUT", f"/api/packages/gcs/{package_name}", content=package)
        answer = await _request(
            client,
            "POST",
            "/api/jobs/",
            json={
                "entrypoint": job.command.entrypoint(),
                "runtime_env": {
                    **job.runtime_env(),
                    "working_dir": f"gcs://{package_name}",
                },
                "metadata": {"name": name},
            },
        )
    try:
        return str(answer.json()["submission_id"])
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterUnavailable(
            f"Ray's dashboard at {job.address} took the job and named no id"
        ) from error


async def _request(
    client: httpx.AsyncClient, method: str, path: str, **what: Any
) -> httpx.Response:
    try:
        response = await client.request(method, path, **what)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ClusterUnavailable(
            f"Ray's dashboard at {client.base_url} cannot be reached: "
            f"{str(error) or type(error).__name__}",
            hint="start Ray with ray start --head, or name its dashboard in miles.ray_address",
        ) from error
    if not response.is_success:
        said = " ".join(response.text.split())[-300:]
        raise ClusterUnavailable(
            f"Ray's dashboard at {client.base_url} answered {response.status_code}: {said}"
        )
    return response


def _package(files: Mapping[str, str]) -> bytes:
    """A zip file that is the same for the same files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, date_time=_EPOCH), text)
    return buffer.getvalue()
