"""One bwrap from start to stop, with a program in its place that goes wrong."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest

from palestra.environment.sandboxes.launch import Launch, StartFailure
from palestra.environment.sandboxes.processes import command_lines
from palestra.environment.sandboxes.reaper import Leases


async def test_a_child_that_bwrap_leaves_behind_dies_too(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    launch = Launch(leases, leases.open(layers=(), cgroups=(), sandbox_id="abc"), has_bash=True)
    seconds = str(100_000_000 + secrets.randbelow(900_000_000))
    script = f"sleep {seconds} >/dev/null 2>&1 & echo gave up >&2; exit 3"
    with pytest.raises(StartFailure, match="gave up") as caught:
        await launch.start(lambda _: ["sh", "-c", script], timeout_s=30)
    assert caught.value.returned == 3
    await launch.stop()
    for _ in range(200):  # who was killed is gone a moment later
        if not (left := [words for _, words in command_lines() if seconds in words]):
            break
        await asyncio.sleep(0.05)
    assert left == []
    assert list(leases.all()) == []
