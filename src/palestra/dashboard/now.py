"""What goes on right now: the environment server's live episodes, and this machine."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from palestra.report.visible import shown

FRESH_S = 0.7
"""An answer that young is handed on to whoever asks next."""
_TIMEOUT_S = 2.0
_MAX_ANSWER_BYTES = 8 << 20

STAGES = {
    "queued": "queued",
    "image": "pulling",
    "start": "starting",
    "thinking": "thinking",
    "command": "running a command",
    "diff": "reading the diff",
    "grade": "grading",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveEpisode:
    """An episode in the queue or at work; the names are those of the page's JSON."""

    id: str
    task: str
    stage: str
    seconds: float
    stage_s: float | None
    doing: str
    last_command: str
    doing_s: float | None
    num_commands: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentNow:
    """What the environment server says of itself.

    Attributes:
        url: where it was asked.
        error: why it did not answer; the rest is then empty.
        concurrency: episodes that may be at work at once.
        uptime_s: since it started, in seconds.
        is_stopping: it takes no more.
        stages: live episodes by stage.
        episodes: oldest first.
        totals: ended episodes by outcome.
        pulling: images that are being brought ahead, and how far they are.
        failed: images that did not come, and why.
    """

    url: str
    error: str | None = None
    concurrency: int | None = None
    uptime_s: float | None = None
    is_stopping: bool = False
    stages: Mapping[str, int] = field(default_factory=dict)
    episodes: tuple[LiveEpisode, ...] = ()
    totals: Mapping[str, int] = field(default_factory=dict)
    pulling: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineNow:
    """This machine: the one the viewer runs on."""

    load: tuple[float, float, float]
    num_cpus: int
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    disk_used_bytes: int | None
    disk_total_bytes: int | None
    disk_path: str


class EnvironmentWatch:
    """Asks an environment server how it is, once however many look on.

    Args:
        token: that the server wants, if any.
    """

    def __init__(self, token: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # Straight to the server: the token must not pass through a proxy.
        self._client = httpx.Client(timeout=_TIMEOUT_S, headers=headers, trust_env=False)
        self._lock = threading.Lock()
        self._last: dict[str, tuple[float, EnvironmentNow]] = {}

    def ask(self, url: str) -> EnvironmentNow:
        """What the server at ``url`` says; trouble is in the answer."""
        with self._lock:
            known = self._last.get(url)
            if known is not None and time.monotonic() - known[0] < FRESH_S:
                return known[1]
            found = self._asked(url)
            self._last = {url: (time.monotonic(), found)}
            return found

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def _asked(self, url: str) -> EnvironmentNow:
        try:
            response = self._client.get(f"{url.rstrip('/')}/status")
            response.raise_for_status()
            if len(response.content) > _MAX_ANSWER_BYTES:
                return EnvironmentNow(url=url, error="its answer is too long")
            return _environment(url, response.json())
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return EnvironmentNow(url=url, error=str(error) or type(error).__name__)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return EnvironmentNow(url=url, error=f"its answer makes no sense: {error}")


def machine_now(folder: Path) -> MachineNow:
    """Load, memory and the disk that a folder is on."""
    memory = _memory()
    total, available = memory.get("MemTotal"), memory.get("MemAvailable")
    try:
        disk = shutil.disk_usage(folder)
    except OSError:
        disk = None
    return MachineNow(
        load=os.getloadavg(),
        num_cpus=len(os.sched_getaffinity(0)),
        memory_used_bytes=total - available
        if total is not None and available is not None
        else None,
        memory_total_bytes=total,
        disk_used_bytes=disk.used if disk else None,
        disk_total_bytes=disk.total if disk else None,
        disk_path=str(folder),
    )


def _environment(url: str, status: Mapping[str, Any]) -> EnvironmentNow:
    episodes = sorted(map(_live, status["episodes"]), key=lambda e: e.seconds, reverse=True)
    stages = dict.fromkeys(STAGES, 0)
    for episode in episodes:
        stages[episode.stage] = stages.get(episode.stage, 0) + 1
    prefetch = status.get("prefetch") or {}
    return EnvironmentNow(
        url=url,
        concurrency=status.get("concurrency"),
        uptime_s=status.get("uptime_s"),
        is_stopping=bool(status.get("stopping")),
        stages=stages,
        episodes=tuple(episodes),
        totals={str(k): int(v) for k, v in (status.get("totals") or {}).items()},
        pulling={str(k): str(v) for k, v in (prefetch.get("pulling") or {}).items()},
        failed={str(k): str(v) for k, v in (prefetch.get("failed") or {}).items()},
    )


def _live(found: Mapping[str, Any]) -> LiveEpisode:
    stage, command = str(found["stage"]), found.get("command")
    if stage == "agent":
        stage = "thinking" if command is None else "command"
    doing = command if command is not None else found.get("detail") or ""
    return LiveEpisode(
        id=str(found["id"]),
        task=shown(str(found["instance_id"])),
        stage=stage,
        seconds=float(found["seconds"]),
        stage_s=found.get("stage_seconds"),
        doing=shown(str(doing)),
        last_command=shown(str(found.get("last_command") or "")),
        doing_s=found.get("doing_seconds"),
        num_commands=found.get("commands"),
    )


def _memory() -> dict[str, int]:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        pairs = (line.split(":", 1) for line in lines)
        return {name: int(value.split()[0]) << 10 for name, value in pairs if value.strip()}
    except (OSError, ValueError):
        return {}
