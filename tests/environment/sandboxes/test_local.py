"""What is the local backend's own: limits, refusals, and what a killed server leaves."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from palestra.environment.sandboxes.local import LocalBackend, reap_local
from palestra.environment.sandboxes.owners import is_gone, this_owner
from palestra.environment.sandboxes.processes import command_lines
from palestra.environment.sandboxes.protocol import SandboxLimits, SandboxSpec
from palestra.errors import HostError, ImageError, SandboxDied
from palestra.records import HOST_IMAGE, TaskFile

SPEC = SandboxSpec(image=HOST_IMAGE, workdir="/testbed")
SERVER = """
import asyncio, sys
from pathlib import Path
from palestra.environment.sandboxes.local import LocalBackend
from palestra.environment.sandboxes.protocol import SandboxSpec
from palestra.records import HOST_IMAGE

async def main():
    backend = LocalBackend(state_dir=Path(sys.argv[1]))
    async with backend.start(SandboxSpec(image=HOST_IMAGE, workdir="/w")) as box:
        await box.run("sleep 5544 & setsid sleep 5544 & true", timeout_s=60)
        print("up", flush=True)
        await box.run("sleep 5544", timeout_s=60)

asyncio.run(main())
"""


def sleepers(seconds: str) -> list[int]:
    return [pid for pid, arguments in command_lines() if arguments[:2] == ["sleep", seconds]]


async def test_a_task_with_an_image_is_refused(tmp_path: Path) -> None:
    backend = LocalBackend(state_dir=tmp_path)
    with pytest.raises(ImageError, match=r"local backend has no images.*some/image:1"):
        async with backend.start(SandboxSpec(image="some/image:1", workdir="/testbed")):
            pass


async def test_a_prompt_sets_startup_file_is_not_the_hosts(tmp_path: Path) -> None:
    startup = tmp_path / "bashrc"
    startup.write_text("echo read by every bash\n")
    env = {"BASH_ENV": str(startup), "ENV": str(startup), "KEPT": "yes"}
    spec = SandboxSpec(image=HOST_IMAGE, workdir="/w", env=env)
    async with LocalBackend(state_dir=tmp_path).start(spec) as box:
        assert (await box.run('echo "$KEPT"', timeout_s=30)).output == "yes\n"


async def test_files_that_cannot_all_exist(tmp_path: Path) -> None:
    files = (TaskFile(path="a", text=""), TaskFile(path="a/b", text=""))
    backend = LocalBackend(state_dir=tmp_path)
    with pytest.raises(ImageError, match="a/b"):
        async with backend.start(SandboxSpec(image=HOST_IMAGE, workdir="/w", files=files)):
            pass
    assert list((tmp_path / "local").iterdir()) == []


async def test_state_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError):
        await LocalBackend(state_dir=tmp_path / "file").check()


async def test_memory_and_file_size_are_limited(tmp_path: Path) -> None:
    limits = SandboxLimits(memory_bytes=256 << 20, disk_bytes=1 << 20)
    spec = SandboxSpec(image=HOST_IMAGE, workdir="/w", limits=limits)
    async with LocalBackend(state_dir=tmp_path).start(spec) as box:
        done = await box.run("python3 -c 'bytearray(1 << 30)'", timeout_s=30)
        assert done.exit_code == 1
        assert "MemoryError" in done.output
        done = await box.run("head -c 3000000 /dev/zero >big", timeout_s=30)
        assert done.exit_code != 0
        assert (await box.run("wc -c <big", timeout_s=30)).output.strip() == str(1 << 20)


async def test_a_removed_working_directory_is_the_agents_loss(tmp_path: Path) -> None:
    async with LocalBackend(state_dir=tmp_path).start(SPEC) as box:
        await box.run('rm -rf "$PWD"', timeout_s=30)
        assert (await box.run("echo usable", timeout_s=30)).output == "usable\n"


async def test_git_takes_no_repository_around_the_sandbox(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    for name in ("objects", "refs"):
        (tmp_path / ".git" / name).mkdir()
    async with LocalBackend(state_dir=tmp_path).start(SPEC) as box:
        done = await box.run("git rev-parse --git-dir", timeout_s=30)
        assert done.exit_code == 128, done.output


async def test_a_folder_that_is_gone_is_a_dead_sandbox(tmp_path: Path) -> None:
    async with LocalBackend(state_dir=tmp_path).start(SPEC) as box:
        shutil.rmtree(tmp_path / "local")
        with pytest.raises(SandboxDied):
            await box.run("true", timeout_s=30)


async def test_what_a_killed_server_left_is_reaped_by_the_next(tmp_path: Path) -> None:
    server = await asyncio.to_thread(
        subprocess.Popen,
        [sys.executable, "-c", SERVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    assert await asyncio.to_thread(server.stdout.readline) == "up\n"
    assert await reap_local(tmp_path / "local") == (), "the living lose nothing"
    server.send_signal(signal.SIGKILL)
    server.wait()
    server.stdout.close()
    assert sleepers("5544"), "nothing was left to reap"
    await LocalBackend(state_dir=tmp_path).check()
    assert list((tmp_path / "local").iterdir()) == []
    await asyncio.sleep(0.1)
    assert sleepers("5544") == []


def test_owners() -> None:
    assert not is_gone(this_owner())
    place, pid, ticks = this_owner().rsplit(":", 2)
    assert int(pid) == os.getpid()
    assert is_gone(f"{place}:{pid}:{int(ticks) + 1}")
    assert not is_gone(f"another-machine:{pid}:1"), "it may live where we cannot look"
    for nonsense in ("", "x", f"{place}:x:1", f"{place}:1:x"):
        assert not is_gone(nonsense)
