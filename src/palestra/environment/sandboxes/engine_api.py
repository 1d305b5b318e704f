"""The part of a container engine's HTTP API that sandboxes need, over its Unix socket.

Docker's API, which Podman's service speaks as well. Paths carry no version: the engine
then answers with its newest.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson

from palestra.environment.sandboxes.engine_stream import EngineStream, open_stream
from palestra.environment.sandboxes.images import is_on_loopback
from palestra.errors import ImageError, SandboxStartError, SandboxUnavailable

_TIMEOUT_S = 60.0
_PULL_TIMEOUT_S = 600.0  # between two lines; unpacking a large layer says nothing
_PODMAN_PULL = "/v4.0.0/libpod/images/pull"
_COMMIT_TIMEOUT_S = 1800.0
_LOAD_TIMEOUT_S = 1800.0
_NOT_FOUND = 404
_CONFLICT = 409
_REMOVE_POLL_S = 0.05
_NUM_REMOVE_POLLS = 200
_NUM_REMOVE_FAILURES = 4
_NUM_UPLOADS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKind:
    """One of the engines that speak the API, and how to reach it.

    Attributes:
        name: also of its program.
        variable: environment variable that may name its socket (``unix://PATH``).
        sockets: where it listens otherwise; ``~`` and ``$XDG_RUNTIME_DIR`` are filled in.
        hint: how to start it.
    """

    name: str
    variable: str
    sockets: tuple[str, ...]
    hint: str

    def find_socket(self) -> Path:
        """The engine's socket.

        Raises:
            SandboxUnavailable: there is none, or none that we may open.
        """
        named = os.environ.get(self.variable, "")
        if named and not named.startswith("unix://"):
            raise SandboxUnavailable(
                f"${self.variable} is {named}, and only a Unix socket of this machine can be used"
            )
        paths = (named.removeprefix("unix://"),) if named else self.sockets
        found = [path for path in map(_expanded, paths) if path is not None and path.is_socket()]
        for path in found:
            if os.access(path, os.R_OK | os.W_OK):
                return path
        if found:
            raise SandboxUnavailable(f"no permission to use {found[0]}", hint=self.hint)
        raise SandboxUnavailable(f"no {self.name} engine is running", hint=self.hint)


DOCKER = EngineKind(
    name="docker",
    variable="DOCKER_HOST",
    sockets=(
        "$XDG_RUNTIME_DIR/docker.sock",
        "/var/run/docker.sock",
        "~/.docker/run/docker.sock",
    ),
    hint="start Docker, and join the group docker",
)
PODMAN = EngineKind(
    name="podman",
    variable="CONTAINER_HOST",
    sockets=("$XDG_RUNTIME_DIR/podman/podman.sock", "/run/podman/podman.sock"),
    hint="start its service: systemctl --user start podman.socket",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container that carries one of our labels."""

    container_id: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineImage:
    """An image that the engine has; one without names is only there for others."""

    image_id: str
    names: tuple[str, ...]
    labels: Mapping[str, str]


class EngineApi:
    """Calls to one engine.

    Args:
        kind: for messages.
        socket: where it listens.
        client: an HTTP client on that socket.
    """

    def __init__(self, kind: EngineKind, socket: Path, client: httpx.AsyncClient) -> None:
        self._kind = kind
        self._socket = socket
        self._client = client

    async def image_user(self, image: str) -> str:
        """The user that ``image`` wants to run as; empty for root.

        Raises:
            ImageError: the engine has no such image.
        """
        answer = await self._call("GET", f"/images/{image}/json")
        if answer.status_code == _NOT_FOUND:
            raise ImageError(
                f"{self._kind.name} has no image {image}", hint=f"{self._kind.name} pull {image}"
            )
        return str(_body(_ok(answer, f"looking at {image}")).get("Config", {}).get("User") or "")

    async def find_image(self, image: str) -> EngineImage | None:
        """What the engine knows of ``image``; ``None`` if it does not have it."""
        answer = await self._call("GET", f"/images/{image}/json")
        if answer.status_code == _NOT_FOUND:
            return None
        body = _body(_ok(answer, f"looking at {image}"))
        labels = (body.get("Config") or {}).get("Labels") or {}
        names = (*(body.get("RepoTags") or ()), *(body.get("RepoDigests") or ()))
        return EngineImage(image_id=str(body["Id"]), names=names, labels=dict(labels))

    async def commit(
        self, container_id: str, *, repo: str, tag: str, labels: Mapping[str, str]
    ) -> None:
        """Keep what a container has changed as the image ``repo:tag`` with ``labels``.

        Raises:
            SandboxStartError: the engine refuses.
        """
        answer = await self._call(
            "POST",
            "/commit",
            params={
                "container": container_id,
                "repo": repo,
                "tag": tag,
                "pause": "false",
                "changes": [f"LABEL {name}={value}" for name, value in labels.items()],
            },
            content=b"{}",
            headers={"content-type": "application/json"},
            timeout=_COMMIT_TIMEOUT_S,
        )
        _ok(answer, "keeping a container as an image")

    async def labelled_images(self, label: str) -> list[EngineImage]:
        """All images with ``label``."""
        answer = await self._call(
            "GET",
            "/images/json",
            params={"filters": orjson.dumps({"label": [label]}).decode()},
        )
        return [
            EngineImage(
                image_id=str(row["Id"]),
                names=tuple(name for name in row.get("RepoTags") or () if "<none>" not in name),
                labels=dict(row.get("Labels") or {}),
            )
            for row in orjson.loads(_ok(answer, "listing images").content)
        ]

    async def remove_image(self, image: str) -> bool:
        """Remove an image by name; tell whether it went: one in use stays."""
        answer = await self._call("DELETE", f"/images/{image}")
        return not answer.is_error

    async def has_image(self, image: str) -> bool:
        """Whether the engine has ``image``."""
        return await self.find_image(image) is not None

    async def pull(self, image: str) -> AsyncIterator[Mapping[str, Any]]:
        """Pull ``image``, whose tag or digest is named; yield what the engine says of it.

        A registry on loopback may speak HTTP: Docker takes that as it is, Podman has to be
        told, in words that only its own API has.

        Raises:
            SandboxStartError: the engine refuses at once, or falls silent.
        """
        path, params = "/images/create", {"fromImage": image}
        if self._kind is PODMAN and is_on_loopback(image):
            path, params = _PODMAN_PULL, {"reference": image, "tlsVerify": "false"}
        try:
            async with self._client.stream(
                "POST", path, params=params, timeout=_PULL_TIMEOUT_S
            ) as answer:
                if answer.is_error:
                    await answer.aread()
                    yield {"error": _message(answer)}
                    return
                async for line in answer.aiter_lines():
                    if line.strip():
                        yield orjson.loads(line)
        except (httpx.HTTPError, ValueError) as error:
            raise SandboxStartError(
                f"{self._kind.name} broke off pulling {image}: {error or type(error).__name__}"
            ) from error

    async def load(self, archive: AsyncIterator[bytes]) -> str | None:
        """Let the engine take in an archive of an image; return what it has against it.

        Raises:
            SandboxStartError: the engine does not answer.
        """
        answer = await self._call(
            "POST",
            "/images/load",
            params={"quiet": "1"},
            content=archive,
            headers={"content-type": "application/x-tar"},
            timeout=_LOAD_TIMEOUT_S,
        )
        if answer.is_error:
            return _message(answer)
        lines = [orjson.loads(line) for line in answer.text.splitlines() if line.strip()]
        return next((str(line["error"]) for line in lines if line.get("error")), None)

    async def create(self, name: str, settings: Mapping[str, Any]) -> str:
        """Create a container; return its id.

        Raises:
            SandboxStartError: the engine refuses.
        """
        answer = await self._call(
            "POST",
            "/containers/create",
            params={"name": name},
            content=orjson.dumps(dict(settings)),
            headers={"content-type": "application/json"},
        )
        return str(_body(_ok(answer, "creating a container"))["Id"])

    async def upload(self, container_id: str, tar: bytes) -> None:
        """Unpack ``tar`` at the root of a container.

        Raises:
            SandboxStartError: the engine refuses again and again.
        """
        for _ in range(_NUM_UPLOADS):
            answer = await self._call(
                "PUT",
                f"/containers/{container_id}/archive",
                params={"path": "/"},
                content=tar,
                headers={"content-type": "application/x-tar"},
            )
            # Podman unpacks in a child, which on a busy machine now and then does not come up.
            if not answer.is_server_error:
                break
        _ok(answer, "laying files into a container")

    async def attach(self, container_id: str) -> EngineStream:
        """Open the streams of a container's first process; before :meth:`start`."""
        path = f"/containers/{container_id}/attach?stream=1&stdin=1&stdout=1&stderr=1"
        return await open_stream(self._socket, path, timeout_s=_TIMEOUT_S)

    async def start(self, container_id: str) -> None:
        """Start a container.

        Raises:
            ImageError: the image has no shell.
            SandboxStartError: it does not start for another reason.
        """
        answer = await self._call("POST", f"/containers/{container_id}/start")
        if answer.is_error and "/bin/sh" in answer.text and "no such file" in answer.text.lower():
            raise ImageError("the image has no /bin/sh, in which commands run")
        _ok(answer, "starting a container")

    async def first_pid(self, container_id: str) -> int:
        """The pid of a container's first process where the engine runs; 0 if there is none."""
        answer = await self._call("GET", f"/containers/{container_id}/json")
        state = _body(_ok(answer, "looking at a container")).get("State") or {}
        return int(state.get("Pid") or 0)

    async def written_bytes(self, container_id: str) -> int:
        """What a container has written over its image; the engine walks all of it to tell."""
        answer = await self._call("GET", f"/containers/{container_id}/json", params={"size": "1"})
        return int(_body(_ok(answer, "measuring a container")).get("SizeRw") or 0)

    async def signal(self, container_id: str, name: str) -> bool:
        """Send a signal to a container's first process; tell whether it was there."""
        answer = await self._call(
            "POST", f"/containers/{container_id}/kill", params={"signal": name}
        )
        return not answer.is_error

    async def remove(self, name: str) -> None:
        """Kill and remove a container, by name or id, and wait until it is gone.

        Raises:
            SandboxStartError: the engine refuses again and again.
        """
        num_failures = 0
        for _ in range(_NUM_REMOVE_POLLS):
            answer = await self._call(
                "DELETE", f"/containers/{name}", params={"force": "1", "v": "1"}
            )
            if answer.status_code == _NOT_FOUND:
                return
            if not answer.is_error:
                continue  # asked again: until it is not there
            # A conflict: the engine is removing it itself. A failure: what it removes can be
            # busy for a moment, with what has just been killed.
            if answer.status_code != _CONFLICT:
                num_failures += 1
                if num_failures == _NUM_REMOVE_FAILURES:
                    _ok(answer, "removing a container")
            await asyncio.sleep(_REMOVE_POLL_S * (1 + 4 * num_failures))

    async def labelled(self, label: str) -> list[Container]:
        """Every container with ``label``, running or not."""
        answer = await self._call(
            "GET",
            "/containers/json",
            params={"all": "1", "filters": orjson.dumps({"label": [label]}).decode()},
        )
        rows = orjson.loads(_ok(answer, "listing containers").content)
        return [Container(container_id=row["Id"], labels=row["Labels"] or {}) for row in rows]

    async def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return await self._client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise SandboxStartError(
                f"{self._kind.name} does not answer: {error or type(error).__name__}"
            ) from error


@asynccontextmanager
async def open_engine(kind: EngineKind) -> AsyncIterator[EngineApi]:
    """Yield the API of the engine of this machine.

    Raises:
        SandboxUnavailable: there is none.
    """
    socket = kind.find_socket()
    transport = httpx.AsyncHTTPTransport(uds=str(socket), verify=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://engine", timeout=_TIMEOUT_S, trust_env=False
    ) as client:
        yield EngineApi(kind, socket, client)


def _ok(answer: httpx.Response, doing: str) -> httpx.Response:
    if answer.is_error:
        raise SandboxStartError(f"{doing}: {_message(answer)}")
    return answer


def _body(answer: httpx.Response) -> dict[str, Any]:
    body = orjson.loads(answer.content)
    if not isinstance(body, dict):
        raise SandboxStartError(f"the engine answered {answer.text[:200]!r}")
    return body


def _message(answer: httpx.Response) -> str:
    try:
        return str(orjson.loads(answer.content)["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}: {answer.text[:200]}"


def _expanded(path: str) -> Path | None:
    filled = os.path.expandvars(path)
    return None if "$" in filled else Path(filled).expanduser()
