"""The command channel: hostile commands, kills, time-outs, races."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.output import HeadAndTail
from palestra.environment.sandboxes.protocol import CommandResult, SandboxSpec
from palestra.environment.sandboxes.sandbox import BubblewrapSandbox
from palestra.errors import SandboxDied, SandboxError
from palestra.records import HOST_IMAGE

SPEC = SandboxSpec(image=HOST_IMAGE, workdir="/work")


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[BubblewrapSandbox]:
    backend = BubblewrapBackend(store=None, state_dir=tmp_path / "state")
    async with backend.start(SPEC) as sandbox:
        assert isinstance(sandbox, BubblewrapSandbox)
        yield sandbox


def num_open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def exists(path: str) -> bool:
    return Path(path).exists()


async def run(box: BubblewrapSandbox, command: str, timeout_s: float = 20) -> CommandResult:
    return await box.run(command, timeout_s=timeout_s)


async def assert_usable(box: BubblewrapSandbox) -> None:
    result = await run(box, "echo usable")
    assert (result.output, result.exit_code) == ("usable\n", 0)


async def test_output_is_merged_in_order(box: BubblewrapSandbox) -> None:
    result = await run(box, "for i in 1 2 3; do echo out$i; echo err$i >&2; done; printf '\\xffx'")
    assert result.output == "out1\nerr1\nout2\nerr2\nout3\nerr3\n\ufffdx"
    assert not result.timed_out
    assert 0 < result.duration_s < 20


async def test_nothing_persists_but_files(box: BubblewrapSandbox) -> None:
    await run(box, "cd /; export A=1; f() { echo f; }; set -e; umask 077; trap 'echo T' EXIT")
    result = await run(box, 'pwd; echo "[$A]"; f; umask; ulimit -c; trap; echo $0')
    assert result.output.startswith("/work\n[]\nbash: line 1: f: command not found\n0022\n")
    assert result.output.endswith("\nbash\n")


@pytest.mark.parametrize(
    ("command", "exit_code", "output"),
    [
        ("exit 3", 3, ""),
        ("exit 130", 130, ""),
        ("exec ls /nowhere 2>/dev/null", 2, ""),
        ("kill -9 $$", 137, ""),
        ("kill -TERM $$", 143, ""),
        ("kill -INT $$", 130, ""),
        ("kill -9 0", 137, ""),
        ("kill -9 -1; echo after", 0, "bash: line 1: kill: (-1) - No such process\nafter\n"),
        ("exec >&- 2>&-; sleep 0.1", 0, ""),
        ("cat; read x; echo $?", 0, "1\n"),
        ("false | true", 0, ""),
        ("printf 'a\\0b'", 0, "a\0b"),
        ('echo \'"$x\' \\\\ "a  b"', 0, '"$x \\ a  b\n'),
        ("cat <<'X'\n$y `z`\n\nX\n", 0, "$y `z`\n\n"),
        ("# nothing", 0, ""),
        ("", 0, ""),
        ("echo a\0b", 0, "ab\n"),
        ("echo \ud800", 0, "?\n"),
        (
            "python3 -c 'import signal as s; print(s.getsignal(s.SIGQUIT) == s.SIG_DFL)'",
            0,
            "True\n",
        ),
    ],
)
async def test_endings(box: BubblewrapSandbox, command: str, exit_code: int, output: str) -> None:
    result = await run(box, command)
    assert (result.exit_code, result.output) == (exit_code, output)
    await assert_usable(box)


async def test_syntax_errors(box: BubblewrapSandbox) -> None:
    result = await run(box, "if then")
    assert result.exit_code == 2
    assert "syntax error" in result.output
    await assert_usable(box)


async def test_pid_1_survives_every_signal(box: BubblewrapSandbox) -> None:
    result = await run(
        box, "for s in $(seq 1 64); do [ $s = 12 ] || kill -$s 1 2>/dev/null; done; echo sent"
    )
    assert result.output == "sent\n"
    await assert_usable(box)
    # USR2 is how the host has everything killed; from inside it only hits oneself
    assert (await run(box, "kill -USR2 1; sleep 10")).exit_code == 137
    await assert_usable(box)


async def test_commands_cannot_confuse_the_channel(box: BubblewrapSandbox) -> None:
    forge = "echo garbage >/proc/1/fd/1; head -c 300000 /dev/zero >/proc/1/fd/1; exit 9"
    assert (await run(box, forge)).exit_code == 9
    await run(box, "rm -rf /dev/palestra/*; echo x >/dev/palestra/99.in; ls -l /proc/self/fd")
    await assert_usable(box)


async def test_output_is_held_to_head_and_tail(box: BubblewrapSandbox) -> None:
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = await box.run(
        "echo HEAD; head -c 200000000 /dev/zero | tr '\\0' a; echo TAIL",
        timeout_s=60,
        output_limit_bytes=100_000,
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 50_000
    assert result.output.startswith("HEAD\naaa")
    assert result.output.endswith("aaaTAIL\n")
    assert result.elided_bytes == 200_000_010 - 100_000
    assert len(result.output) < 100_100


def test_head_and_tail_by_hand() -> None:
    for limit in (0, 1, 5, 10):
        kept = HeadAndTail(limit)
        for piece in (b"01", b"2", b"3456", b"", b"789"):
            kept.feed(piece)
        head, tail = limit - limit // 2, limit // 2
        assert kept.bytes() == b"0123456789"[:head] + b"0123456789"[10 - tail :]
        assert kept.elided_bytes == 10 - limit


@pytest.mark.parametrize("size", [64 << 10, 99_000, 101_000, 1 << 20])
async def test_long_commands(box: BubblewrapSandbox, size: int) -> None:
    result = await run(box, f"x='{'é' * (size // 2)}'; printf %s \"$x\" | wc -c; echo $0")
    assert result.output.split()[0] == str(size)


async def test_timeout_kills_the_whole_tree_and_returns_what_was_printed(
    box: BubblewrapSandbox,
) -> None:
    started_s = time.monotonic()
    result = await run(
        box,
        "trap '' TERM INT HUP; echo begun; (setsid sleep 77 &); sleep 78 & nohup sleep 79 &"
        " python3 -c 'import os; os.fork(); os.setsid; import time; time.sleep(76)'",
        timeout_s=0.5,
    )
    assert time.monotonic() - started_s < 10
    assert (result.exit_code, result.timed_out, result.output) == (-1, True, "begun\n")
    assert (await run(box, "ps axo args | grep -c '^sleep\\|^python'")).output == "0\n"
    assert (await run(box, "true", timeout_s=0.0001)).exit_code in (-1, 0)
    await assert_usable(box)


async def test_a_stopped_command_is_waited_for_and_times_out(box: BubblewrapSandbox) -> None:
    result = await run(box, "(sleep 0.2; kill -CONT $$) & kill -STOP $$; echo went on")
    assert (result.exit_code, result.output) == (0, "went on\n")
    result = await run(box, "echo begun; kill -STOP $$", timeout_s=0.5)
    assert (result.exit_code, result.timed_out, result.output) == (-1, True, "begun\n")
    await assert_usable(box)


async def test_background_children_neither_block_nor_pollute(box: BubblewrapSandbox) -> None:
    started_s = time.monotonic()
    result = await run(box, "(sleep 0.3; echo LATE; touch late; sleep 60) & echo now")
    assert result.output == "now\n"
    assert time.monotonic() - started_s < 5
    for _ in range(200):
        result = await run(box, "ls; sleep 0.01")
        assert result.output in ("", "late\n")
        if result.output:
            break
    else:
        pytest.fail("the background child did not live on to print and touch its file")


async def test_chatty_background_child_lives_but_is_not_heard(box: BubblewrapSandbox) -> None:
    await run(box, "(while echo spam; do sleep 0.01; done; touch /tmp/dead) & sleep 0.1")
    await asyncio.sleep(0.2)
    assert (await run(box, "ls /tmp")).output == ""


async def test_a_hundred_commands_leak_nothing(box: BubblewrapSandbox) -> None:
    await assert_usable(box)
    before = num_open_fds()
    for number in range(100):
        assert (await run(box, f"echo {number}")).output == f"{number}\n"
    assert num_open_fds() == before
    assert (await run(box, "ls /dev/palestra | wc -l")).output == "2\n"  # its own pair
    # of which 255 is bash's own
    assert (await run(box, "exec ls /proc/1/fd | grep -v 255 | tr '\\n' ' '")).output == "0 1 2 "


async def test_concurrent_commands_take_turns(box: BubblewrapSandbox) -> None:
    step = "x=$(cat n 2>/dev/null || echo 0); sleep 0.01; echo $((x + 1)) > n"
    await asyncio.gather(*(run(box, step) for _ in range(20)))
    assert (await run(box, "cat n")).output == "20\n"


async def test_cancelled_command_is_killed_and_the_next_one_is_right(
    box: BubblewrapSandbox,
) -> None:
    for delay_ms in (0, 1, 2, 3, 5, 10, 50):
        task = asyncio.create_task(run(box, "sleep 55; echo WRONG"))
        await asyncio.sleep(delay_ms / 1000)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await assert_usable(box)
        assert (await run(box, "ps axo args | grep -c '^sleep'")).output == "0\n"


@pytest.mark.parametrize("victim", ["pid 1", "bwrap"])
async def test_killed_from_outside(box: BubblewrapSandbox, victim: str, tmp_path: Path) -> None:
    pid = box.init_pid
    if victim == "bwrap":
        pid = parent_of(pid)
    task = asyncio.create_task(run(box, "sleep 60"))
    await asyncio.sleep(random.random() * 0.1)
    started_s = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(SandboxDied):
        await task
    assert time.monotonic() - started_s < 5
    with pytest.raises(SandboxDied):
        await run(box, "true")
    with pytest.raises(SandboxDied):
        await box.read_file("/etc/passwd")


# --- files --------------------------------------------------------------------


async def test_files_there_and_back(box: BubblewrapSandbox) -> None:
    data = random.Random(0).randbytes(3_000_000)
    for path in ("/work/new/deep/a b'c\"$x", "/tmp/-n", "/work/ü"):
        await box.write_file(path, data)
        assert await box.read_file(path) == data
        await box.write_file(path, b"short")
        assert await box.read_file(path) == b"short"
    await run(box, "echo x > ro; chmod 444 ro")
    await box.write_file("/work/ro", b"")
    assert await box.read_file("/work/ro") == b""


async def test_reading_what_is_no_file_or_too_large(box: BubblewrapSandbox) -> None:
    await run(box, "mkfifo fifo; ln -s nowhere broken; truncate -s 10G huge; echo > locked")
    await run(box, "chmod 0 locked")
    for path in ("/work/none", "/work", "/work/fifo", "/work/broken", "/dev/zero", "/work/locked"):
        with pytest.raises(FileNotFoundError):
            await box.read_file(path)
    with pytest.raises(ValueError, match="larger than 1000"):
        await box.read_file("/work/huge", max_bytes=1000)
    await box.write_file("/work/exact", b"x" * 1000)
    assert len(await box.read_file("/work/exact", max_bytes=1000)) == 1000
    for path in ("relative", "", "/", "/a\0b"):
        with pytest.raises(ValueError, match="absolute"):
            await box.write_file(path, b"")


async def test_symlinks_lead_nowhere_outside(box: BubblewrapSandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    await run(box, f"ln -s {secret} link; ln -s {tmp_path} /tmp/folder; ln -s /etc etc")
    with pytest.raises(FileNotFoundError):
        await box.read_file("/work/link")
    with pytest.raises(SandboxError):
        await box.write_file("/tmp/folder/secret", b"pwned")
    await box.write_file("/work/etc/made-inside", b"x")
    assert secret.read_text() == "hunter2"
    assert not exists("/etc/made-inside")
    with pytest.raises(SandboxError, match="cannot write"):
        await box.write_file("/usr/bin/x", b"")
