"""Every command that an agent runs is accounted for, whichever agent it is."""

from __future__ import annotations

import asyncio

import pytest

from palestra.environment.sandboxes.fake import FakeSandboxBackend
from palestra.environment.sandboxes.protocol import SandboxSpec
from palestra.environment.sandboxes.watched import KEPT_CHARS, WatchedSandbox, output_digest
from palestra.errors import SandboxDied
from palestra.records import HOST_IMAGE

SPEC = SandboxSpec(image=HOST_IMAGE, workdir="/testbed")


async def test_commands_are_noted_with_their_exit_code_and_seconds() -> None:
    told: list[str | None] = []
    async with FakeSandboxBackend().start(SPEC) as sandbox:
        watched = WatchedSandbox(sandbox, told.append)
        await watched.run("true", timeout_s=10)
        await watched.run("sleep 0.2; exit 3", timeout_s=10)
        await watched.run("sleep 30", timeout_s=0.2)
    assert told == ["true", None, "sleep 0.2; exit 3", None, "sleep 30", None]
    first, second, third = watched.commands
    assert (first.exit_code, second.exit_code, third.exit_code) == (0, 3, -1)
    assert [c.timed_out for c in watched.commands] == [False, False, True]
    assert 0 <= first.began_s <= second.began_s <= third.began_s
    assert second.duration_s >= 0.2


async def test_a_command_that_is_cut_off_has_no_exit_code() -> None:
    async with FakeSandboxBackend().start(SPEC) as sandbox:
        watched = WatchedSandbox(sandbox, lambda _: None)
        task = asyncio.create_task(watched.run("sleep 30", timeout_s=60))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    (cut,) = watched.commands
    assert cut.exit_code is None
    with pytest.raises(SandboxDied):
        await watched.run("true", timeout_s=1)
    assert watched.commands[-1].exit_code is None


async def test_what_a_command_printed_is_kept_to_compare() -> None:
    async with FakeSandboxBackend().start(SPEC) as sandbox:
        watched = WatchedSandbox(sandbox, lambda _: None)
        for command in ("echo one", "seq 20000", "seq 20001"):
            await watched.run(command, timeout_s=10)
    first, second, third = watched.commands
    assert first.output == "one\n"
    assert first.output_digest == output_digest("one\n")
    assert second.output == third.output
    assert second.output is not None
    assert len(second.output) == KEPT_CHARS
    assert second.output_digest != third.output_digest
