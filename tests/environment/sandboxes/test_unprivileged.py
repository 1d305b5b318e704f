"""Bubblewrap on unpacked images for a user without any rights."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOTFS, busybox_tree, missing

from palestra.environment.sandboxes.bwrap import find_bwrap

STRANGER = 64_123
UNNEEDED = [
    f"--exclude=./{name}" for name in ("usr/share", "var", "usr/lib/python3*", "usr/lib/git*")
]
# Everything is imported before the rights go: this Python may lie where only root may read.
SCRIPT = """
import asyncio, codecs, ctypes, os, sys
from pathlib import Path
from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.bwrap import Bwrap, find_bwrap
from palestra.environment.sandboxes.images import ImageStore
from palestra.environment.sandboxes.protocol import SandboxLimits, SandboxSpec
from palestra.records import TaskFile

def become(uid):
    codecs.lookup("ascii")  # codecs are imported at their first use
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # What became somebody else hides its /proc from itself; what is started as such does not.
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)

async def main(folder):
    assert os.getresuid() == (os.getuid(),) * 3 != (0, 0, 0)
    store = ImageStore(folder / "store")
    store.import_tar("image", folder / "image.tar", env={"PATH": "/usr/bin:/bin"})
    backend = BubblewrapBackend(
        store=store,
        state_dir=folder / "state",
        bwrap=Bwrap(path=Path(sys.argv[3]), version=(0, 11)),
    )
    limits = SandboxLimits(memory_bytes=256 << 20, num_pids=64, disk_bytes=8 << 20)
    spec = SandboxSpec(
        image="image", workdir="/testbed", limits=limits, files=(TaskFile(path="a", text="1"),)
    )
    async with backend.start(spec) as box:
        async def said(command, timeout_s=30):
            done = await box.run(command, timeout_s=timeout_s)
            return done.output, done.exit_code
        assert await said("id -u; pwd; cat a; rm a; ls") == ("0\\n/testbed\\n1", 0)
        assert await said("rm /etc/passwd && echo x >/etc/passwd && cat /etc/passwd") == ("x\\n", 0)
        assert (await box.run("setsid sleep 60 & sleep 60", timeout_s=0.5)).timed_out
        full = await box.run("head -c 30000000 /dev/zero >big", timeout_s=30)
        assert full.limit == "disk" and full.exit_code, full
        await said("rm big")
        await box.write_file("/testbed/d/b", bytes(100_000))
        assert await box.read_file("/testbed/d/b") == bytes(100_000)
        await box.run("kill -9 -1; kill -9 1; rm -rf /bin/* /dev/shm/*", timeout_s=30)
    async with backend.start(spec) as box:
        assert await said_again(box) == "root\\n"
    assert list((folder / "state/run").glob("*")) == list((folder / "state/leases").glob("*")) == []
    print("all right")

async def said_again(box):
    return (await box.run("head -c 4 /etc/passwd; echo", timeout_s=30)).output

become(int(sys.argv[2]))
asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of the stranger's, below no folder that he may not enter."""
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else; the other tests run as you are")
    made = Path(tempfile.mkdtemp(prefix="palestra-stranger-", dir="/var/tmp"))
    os.chown(made, STRANGER, STRANGER)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def may_run(program: Path) -> bool:
    try:
        return subprocess.run([program, "--version"], user=STRANGER, cwd="/").returncode == 0
    except OSError:
        return False


@pytest.mark.parametrize("image", ["debian", "busybox"])
def test_a_stranger_runs_an_unpacked_image(folder: Path, tmp_path: Path, image: str) -> None:
    bwrap = find_bwrap().path
    if not may_run(bwrap):
        pytest.skip(f"another user may not run {bwrap}")
    if image == "debian" and not ROOTFS:
        missing("$PALESTRA_TEST_ROOTFS names no unpacked tree")
    tree = Path(ROOTFS) if image == "debian" else busybox_tree(tmp_path / "busybox")
    subprocess.run(["tar", "-C", tree, *UNNEEDED, "-cf", folder / "image.tar", "."], check=True)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, folder, str(STRANGER), bwrap],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "all right\n", done.stderr
