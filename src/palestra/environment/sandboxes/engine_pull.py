"""Pulling images through a container engine, which keeps its own store of them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from typing import Any

from palestra.environment.sandboxes.engine_api import EngineApi
from palestra.environment.sandboxes.images import canonical_name
from palestra.environment.sandboxes.protocol import ImageProgress, OnProgress
from palestra.errors import HostError, ImageError, RegistryTrouble

_ATTEMPTS = 5
_FIRST_DELAY_S = 2.0
_BUSY = re.compile(
    r"toomanyrequests|429|\b50\d\b|timeout|connection re(set|fused)|EOF|dial tcp|no such host", re.I
)
_UNKNOWN = re.compile(r"manifest unknown|not found|name unknown|does not exist", re.I)
_REFUSED = re.compile(r"denied|unauthorized|authentication required", re.I)
_FULL = re.compile(r"no space left|disk quota", re.I)


class EnginePulls:
    """The pulls of one engine; callers that want one image at a time share its pull."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}

    async def ensure(self, api: EngineApi, image: str, on_progress: OnProgress) -> None:
        """Pull ``image`` where the engine does not have it.

        Raises:
            ImageError: it is unknown, refused or broken, or the registry stayed busy.
            HostError: the engine's disk is full.
            SandboxStartError: the engine does not answer.
        """
        name = canonical_name(image)
        async with self._locks.setdefault(name, asyncio.Lock()):
            if await api.has_image(name):
                return
            for attempt in range(_ATTEMPTS):
                failure = await _pull(api, name, on_progress)
                if failure is None:
                    return
                error = _explain(name, failure)
                if not isinstance(error, RegistryTrouble) or attempt == _ATTEMPTS - 1:
                    raise error
                await asyncio.sleep(_FIRST_DELAY_S * 2.0**attempt)


async def _pull(api: EngineApi, name: str, on_progress: OnProgress) -> str | None:
    """Pull once; return what went wrong."""
    tally = _Tally()
    async for line in api.pull(name):
        if "error" in line:
            return str(line["error"])
        if tally.add(line):
            on_progress(tally.progress())
    return None


class _Tally:
    """Bytes by layer, as the engine tells them; a layer is known once its fetch begins."""

    def __init__(self) -> None:
        self._done: dict[str, int] = {}
        self._total: dict[str, int] = {}
        self._started_s = time.monotonic()

    def add(self, line: Mapping[str, Any]) -> bool:
        detail = line.get("progressDetail") or {}
        layer, status = str(line.get("id", "")), line.get("status")
        if status == "Downloading" and detail.get("total"):
            self._done[layer], self._total[layer] = int(detail["current"]), int(detail["total"])
        elif status == "Download complete" and layer in self._total:
            self._done[layer] = self._total[layer]
        else:
            return False
        return True

    def progress(self) -> ImageProgress:
        done, total = sum(self._done.values()), sum(self._total.values())
        rate = done / max(time.monotonic() - self._started_s, 1e-3)
        return ImageProgress(
            done_bytes=done,
            total_bytes=total or None,
            seconds_left=(total - done) / rate if rate > 0 else None,
        )


def _explain(name: str, text: str) -> ImageError | HostError:
    if _FULL.search(text):
        return HostError(f"cannot pull {name}: the engine's disk is full", hint="free some space")
    if _REFUSED.search(text):
        return ImageError(
            f"the registry refuses {name}, or does not have it",
            hint="check its name; log in with the engine's login command",
        )
    if _UNKNOWN.search(text):
        return ImageError(f"the registry has no image {name}", hint="check its name and tag")
    # Numbers in the image's own name say nothing.
    if _BUSY.search(text.replace(name.rpartition(":")[0], "")):
        return RegistryTrouble(
            f"cannot pull {name}: {text}", hint="is the registry to be reached from here?"
        )
    return ImageError(f"cannot pull {name}: {text}")
