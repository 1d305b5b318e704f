"""Fetching from registries with skopeo, which needs neither a daemon nor privileges."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from palestra.environment.sandboxes.images import is_on_loopback
from palestra.errors import HostError, ImageError, RegistryTrouble

_INSPECT_TIMEOUT_S = 120.0
_STALL_TIMEOUT_S = 300.0
_POLL_S = 0.25
_KILL_TIMEOUT_S = 10.0
_REFUSED = re.compile(r"unauthorized|denied|authentication required|status 40[13]", re.I)
_UNKNOWN = re.compile(r"manifest unknown|name unknown|repository name not known|not found", re.I)
_FULL = re.compile(r"no space left|disk quota", re.I)
_BROKEN = re.compile(r"did(n't| not) match|does not match|verification failed", re.I)


class Skopeo:
    """Reads from one registry, or from each image's own.

    Args:
        registry: host and port (and path) of a mirror that has every image under its usual
            name; ``None``: each comes from where its name says. A registry on loopback
            may speak plain HTTP.
        stall_timeout_s: seconds without a new byte after which a transfer counts as dead.
    """

    def __init__(
        self, *, registry: str | None = None, stall_timeout_s: float = _STALL_TIMEOUT_S
    ) -> None:
        self._registry = registry.rstrip("/") if registry else None
        self._stall_timeout_s = stall_timeout_s

    async def manifest(self, image: str, *, digest: str | None = None) -> bytes:
        """The raw manifest, or index, of ``image``; ``digest`` picks one out of an index.

        Raises:
            ImageError: the registry has none, or refuses.
            RegistryTrouble: it is busy or not there.
            HostError: there is no skopeo.
        """
        source = self._source(image, digest)
        arguments = ["inspect", "--raw", *self._tls(source, "--tls-verify"), f"docker://{source}"]
        return await self._run(arguments, image=image, fd=None, grows=None)

    async def copy(
        self, image: str, layout: Path, *, digest: str | None, lock_fd: int, size: Callable[[], int]
    ) -> None:
        """Fetch ``image`` into the OCI layout folder ``layout``; what lies there is kept.

        Args:
            image: its name.
            layout: the folder.
            digest: of the manifest out of an index.
            lock_fd: held by skopeo too, should we be killed before it ends.
            size: how many bytes there are already; progress is known by it.

        Raises:
            ImageError: the registry has none, refuses, or what it gave is broken.
            RegistryTrouble: it is busy or not there, or sent nothing for too long.
            HostError: the disk is full, or there is no skopeo.
        """
        source = self._source(image, digest)
        arguments = ["copy", "--quiet", *self._tls(source, "--src-tls-verify")]
        arguments += [f"docker://{source}", f"oci:{layout}:image"]
        await self._run(arguments, image=image, fd=lock_fd, grows=size)

    async def _run(
        self, arguments: list[str], *, image: str, fd: int | None, grows: Callable[[], int] | None
    ) -> bytes:
        process = await asyncio.create_subprocess_exec(
            *_program(),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=() if fd is None else (fd,),
        )
        talking = asyncio.ensure_future(process.communicate())
        try:
            await self._wait(talking, grows, image)
            stdout, stderr = talking.result()
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await asyncio.wait([talking], timeout=_KILL_TIMEOUT_S)
        if process.returncode != 0:
            raise explain(stderr.decode("utf-8", "replace"), image=image)
        return stdout

    async def _wait(
        self, task: asyncio.Future[tuple[bytes, bytes]], grows: Callable[[], int] | None, image: str
    ) -> None:
        limit_s = _INSPECT_TIMEOUT_S if grows is None else self._stall_timeout_s
        last, still_s = -1, 0.0
        while not (await asyncio.wait([task], timeout=_POLL_S))[0]:
            now = grows() if grows is not None else 0
            still_s = 0.0 if now != last else still_s + _POLL_S
            last = now
            if still_s > limit_s:
                raise RegistryTrouble(f"{image}: the registry sent nothing for {limit_s:g} s")

    def _source(self, image: str, digest: str | None) -> str:
        name = image if self._registry is None else f"{self._registry}/{_path(image)}"
        if digest is None:
            return name
        repository, _, last = name.rpartition("/")
        bare = re.split(r"[:@]", last)[0]
        return f"{repository}/{bare}@{digest}" if repository else f"{bare}@{digest}"

    def _tls(self, source: str, option: str) -> list[str]:
        return [f"{option}=false"] if is_on_loopback(source) else []


def explain(stderr: str, *, image: str) -> ImageError | HostError:
    """The error that skopeo's complaint is."""
    found = re.findall(r'msg="((?:[^"\\]|\\.)*)"', stderr)
    text = (found[-1].replace('\\"', '"') if found else stderr.strip())[-400:]
    if _FULL.search(text):
        return HostError(
            f"cannot fetch {image}: the disk is full",
            hint="free some space (palestra images prune) or choose another folder",
        )
    if _BROKEN.search(text):
        return ImageError(f"what the registry gave of {image} is broken: {text}")
    if re.search(r"signature|policy", text) and "reject" in text:
        return ImageError(f"this machine's policy forbids {image}: {text}")
    if _UNKNOWN.search(text):
        return ImageError(f"the registry has no image {image}", hint="check its name and tag")
    if _REFUSED.search(text):
        return ImageError(
            f"the registry refuses {image}, or does not have it",
            hint="check its name; log in with skopeo login",
        )
    return RegistryTrouble(
        f"cannot fetch {image}: {text}",
        hint="is the registry to be reached from here? "
        "palestra images add registers a root file system of your own",
    )


def _path(image: str) -> str:
    first, slash, rest = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return rest
    return image if slash else f"library/{image}"


def _program() -> list[str]:
    program = shutil.which("skopeo")
    if program is None:
        raise HostError("there is no skopeo, which fetches images", hint="apt install skopeo")
    setpriv = shutil.which("setpriv")
    # It shall not outlive us, even when we are killed.
    return [setpriv, "--pdeathsig", "KILL", program] if setpriv else [program]
