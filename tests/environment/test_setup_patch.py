"""A setup patch makes the repository of a task, and leaves nothing of what was there before."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import orjson
import pytest
from leaky_repository import mark, marks_in, marks_of
from seeded_project import CORE, TIME_S, git, make_project_rootfs

from palestra.environment.patch import snapshot, working_tree_diff
from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.engine import EngineBackend
from palestra.environment.sandboxes.engine_api import DOCKER, PODMAN, open_engine
from palestra.environment.sandboxes.engine_prepared import SOURCE_LABEL, drop_outdated
from palestra.environment.sandboxes.history import PROCEDURE, layer_key
from palestra.environment.sandboxes.images import ImageStore
from palestra.environment.sandboxes.prepared import PreparedLayers
from palestra.environment.sandboxes.protocol import Sandbox, SandboxBackend, SandboxSpec
from palestra.errors import ImageError, PalestraError

ENGINES = {"docker": DOCKER, "podman": PODMAN}
SEEDED = CORE.replace("2 * n", "3 * n").replace(mark("original"), mark("seeded"))
LEFT = {"core", "seeded", "new", "other"}
_SEEN = "/testbed /srv /root /tmp"
_LOOK = (
    "cd /testbed; git log --all -p --no-color; git reflog; git fsck --lost-found;"
    " git cat-file --batch-all-objects --batch; git for-each-ref; git stash list -p"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeded:
    """An image with a project, and a patch that seeds a bug into it.

    The bug takes out the marks ``original`` and ``gone``, and brings in ``seeded`` and ``new``.
    """

    backend_name: str
    image: str
    rootfs: Path
    base_commit: str
    patch: str

    @property
    def spec(self) -> SandboxSpec:
        return SandboxSpec(
            image=self.image,
            workdir="/testbed",
            base_commit=self.base_commit,
            setup_patch=self.patch,
        )

    def backend(self, folder: Path) -> SandboxBackend:
        if self.backend_name in ENGINES:
            return EngineBackend(ENGINES[self.backend_name], host_image=self.image)
        store = ImageStore(folder / "store")
        store.add(self.image, self.rootfs, env={"PATH": "/bin", "HOME": "/root"})
        return BubblewrapBackend(store=store, state_dir=folder / "state")


def _seed(checkout: Path, core: str = SEEDED) -> tuple[str, str]:
    """A patch that puts ``core`` in place, drops a file and adds one, and the commit it makes."""
    index = {"GIT_INDEX_FILE": str(checkout.parent / f"{secrets.token_hex(4)}.index")}
    blobs = {"package/core.py": core, "package/new.py": f"# {mark('new')}\n"}
    lines = [f"0 {'0' * 40}\tpackage/deep/er/gone.py"]
    for path, text in blobs.items():
        blob = git(checkout, "hash-object", "-w", "--stdin", text=text).decode().strip()
        lines.append(f"100644 {blob}\t{path}")
    git(checkout, "read-tree", "HEAD", env=index)
    git(checkout, "update-index", "--index-info", text="\n".join(lines) + "\n", env=index)
    tree = git(checkout, "write-tree", env=index).decode().strip()
    patch = git(checkout, "diff-tree", "-p", "--no-renames", "HEAD", tree).decode()
    who = {"NAME": "palestra", "EMAIL": "palestra@localhost", "DATE": f"{TIME_S} +0000"}
    names = {f"GIT_{role}_{key}": who[key] for role in ("AUTHOR", "COMMITTER") for key in who}
    commit = git(checkout, "commit-tree", tree, text="Initial commit\n", env=names)
    return patch, commit.decode().strip()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The root file system of the project, and another checkout of it."""
    folder = tmp_path_factory.mktemp("seeded")
    top = make_project_rootfs(folder / "rootfs")
    git(folder, "clone", "-q", str(top), "checkout")
    return folder / "rootfs", folder / "checkout"


@pytest.fixture(scope="module", params=["bubblewrap", *ENGINES])
def seeded(request: pytest.FixtureRequest, project: tuple[Path, Path]) -> Iterator[Seeded]:
    rootfs, checkout = project
    patch, commit = _seed(checkout)
    image = f"palestra-test/seeded:{secrets.token_hex(4)}"
    made = Seeded(
        backend_name=request.param, image=image, rootfs=rootfs, base_commit=commit, patch=patch
    )
    try:
        if request.param in ENGINES:
            ENGINES[request.param].find_socket()  # or say that there is none
            _import(made)
        else:
            asyncio.run(BubblewrapBackend(store=None, state_dir=rootfs.parent / "trial").check())
    except PalestraError as error:
        if os.environ.get("PALESTRA_TEST_REQUIRE"):
            raise
        pytest.skip(f"{request.param}: {error}")
    yield made
    if request.param in ENGINES:
        asyncio.run(_remove(made))


@pytest.fixture
def seeded_here(project: tuple[Path, Path]) -> Seeded:
    """For bubblewrap, whose layers are files."""
    rootfs, checkout = project
    try:
        asyncio.run(BubblewrapBackend(store=None, state_dir=rootfs.parent / "trial").check())
    except PalestraError as error:
        pytest.skip(f"bubblewrap: {error}")
    patch, commit = _seed(checkout)
    return Seeded(
        backend_name="bubblewrap",
        image="palestra-test/seeded:here",
        rootfs=rootfs,
        base_commit=commit,
        patch=patch,
    )


def _import(seeded: Seeded) -> None:
    tar = subprocess.Popen(
        ["tar", "-C", str(seeded.rootfs), "--numeric-owner", "-c", "."], stdout=subprocess.PIPE
    )
    remote = ["--remote"] if seeded.backend_name == "podman" else []
    options = ["--change", "ENV PATH=/bin", "--change", "ENV HOME=/root"]
    with tar:
        subprocess.run(
            [seeded.backend_name, *remote, "import", *options, "-", seeded.image],
            stdin=tar.stdout,
            check=True,
            capture_output=True,
        )


async def _remove(seeded: Seeded) -> None:
    """Remove the image, with which all that were made from it go."""
    async with open_engine(ENGINES[seeded.backend_name]) as api:
        source = await api.find_image(seeded.image)
        assert source is not None
        assert await drop_outdated(api) == 0
        assert await api.remove_image(seeded.image)
        assert await drop_outdated(api) >= 1
        for image in await api.labelled_images(SOURCE_LABEL):
            assert image.labels[SOURCE_LABEL] != source.image_id


async def _found(sandbox: Sandbox, folder: Path) -> set[str]:
    """The marks that can be read inside, by git and by whoever reads its files."""
    said = await sandbox.run(_LOOK, timeout_s=30, output_limit_bytes=1 << 24)
    packed = await sandbox.run(
        f"tar -c -f /tmp/seen.tar --exclude seen.tar {_SEEN} 2>&1", timeout_s=30
    )
    assert packed.exit_code == 0, packed.output
    tar = folder / f"{secrets.token_hex(4)}.tar"
    tar.write_bytes(await sandbox.read_file("/tmp/seen.tar"))
    return marks_in(tar) | marks_of(said.output.encode())


async def _output(sandbox: Sandbox, command: str) -> str:
    done = await sandbox.run(command, timeout_s=30)
    assert done.exit_code == 0, f"{command}: {done.output}"
    return done.output


# --- what a sandbox shows ---------------------------------------------------------


async def test_nothing_of_what_the_patch_removed_can_be_read(
    seeded: Seeded, tmp_path: Path
) -> None:
    async with seeded.backend(tmp_path).start(seeded.spec) as sandbox:
        assert await _found(sandbox, tmp_path) == LEFT


async def test_without_the_patch_the_same_look_finds_all_of_it(
    seeded: Seeded, tmp_path: Path
) -> None:
    plain = replace(seeded.spec, base_commit=None, setup_patch="")
    async with seeded.backend(tmp_path).start(plain) as sandbox:
        assert await _found(sandbox, tmp_path) == {"core", "original", "gone", "other"}


async def test_the_repository_is_one_clean_commit(seeded: Seeded, tmp_path: Path) -> None:
    async with seeded.backend(tmp_path).start(seeded.spec) as sandbox:
        assert await _output(sandbox, "git log --format='%H %an %ae %ct %P|%B'") == (
            f"{seeded.base_commit} palestra palestra@localhost {TIME_S} |Initial commit\n\n"
        )
        assert await _output(sandbox, "git status --porcelain") == ""
        # Without a look at the files: their times are those that the index knows.
        assert await _output(sandbox, "git diff-files --name-only") == ""
        assert await _output(sandbox, "git symbolic-ref HEAD") == "refs/heads/main\n"
        assert await _output(sandbox, "git fsck 2>&1") == ""
        assert await _output(sandbox, "cat package/core.py") == SEEDED
        times = await _output(sandbox, "stat -c %Y package/core.py package/new.py other.py")
        assert times.split() == [str(TIME_S)] * 3
        assert (await sandbox.run("ls package/deep", timeout_s=30)).exit_code != 0
        await _output(sandbox, "test -x 'run me.sh' && test ! -x package/core.py")


async def test_the_changed_file_does_not_stand_out(seeded: Seeded, tmp_path: Path) -> None:
    async with seeded.backend(tmp_path).start(seeded.spec) as sandbox:
        said = await _output(sandbox, "stat -c '%d %Y %n' package/* package")
        rows = [line.split() for line in said.splitlines() if "__pycache__" not in line]
        assert {(device, time) for device, time, _ in rows[:-1]} == {(rows[0][0], str(TIME_S))}
        assert rows[-1][1] == str(TIME_S), "the folder was written to"
        said = await _output(sandbox, "find . -name '*.pyc' -o -name __pycache__")
        assert said == "", "what is compiled of all others says which one changed"
        names = (await _output(sandbox, "ls package/[a-m]*")).split()
        by_change = (await _output(sandbox, "ls -tc package/[a-m]*")).split()
        by_number = (await _output(sandbox, "ls -i package/[a-m]* | sort -n")).split()[1::2]
        for order in (by_change, by_number):
            assert order in (names, names[::-1])


async def test_the_diff_of_an_agent_is_against_the_seeded_tree(
    seeded: Seeded, tmp_path: Path
) -> None:
    async with seeded.backend(tmp_path).start(seeded.spec) as sandbox:
        base = await snapshot(sandbox)
        assert await working_tree_diff(sandbox, base) == ""
        await sandbox.write_file("/testbed/package/core.py", CORE.encode())
        patch = await working_tree_diff(sandbox, base)
        assert patch.count("diff --git") == 1
        assert f"-    return 3 * n  # {mark('seeded')}\n" in patch


async def test_several_tasks_of_one_image_are_prepared_at_once(
    seeded: Seeded, project: tuple[Path, Path], tmp_path: Path
) -> None:
    bugs = {n: _seed(project[1], CORE.replace("2 * n", f"{n} * n")) for n in (5, 6, 7)}
    backend = seeded.backend(tmp_path)

    async def line(n: int) -> str:
        patch, commit = bugs[n]
        spec = replace(seeded.spec, base_commit=commit, setup_patch=patch)
        async with backend.start(spec) as sandbox:
            return await _output(sandbox, "grep return package/core.py; git rev-parse HEAD")

    said = await asyncio.gather(*(line(n) for n in bugs))
    for n, text in zip(bugs, said, strict=True):
        assert text == f"    return {n} * n  # {mark('original')}\n{bugs[n][1]}\n"


# --- what is refused --------------------------------------------------------------


async def test_another_base_commit_than_the_patch_makes_is_an_image_error(
    seeded: Seeded, tmp_path: Path
) -> None:
    wrong = "0" * 40
    with pytest.raises(ImageError) as caught:
        await seeded.backend(tmp_path).prepare(replace(seeded.spec, base_commit=wrong))
    assert seeded.base_commit in caught.value.message
    assert wrong in caught.value.message


async def test_a_patch_that_does_not_apply_is_an_image_error(
    seeded: Seeded, tmp_path: Path
) -> None:
    broken = seeded.patch.replace("2 * n", "9 * n")
    with pytest.raises(ImageError, match="does not apply"):
        await seeded.backend(tmp_path).prepare(replace(seeded.spec, setup_patch=broken))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("package/core.py", " M package/core.py"),
        ("notes.txt", "?? notes.txt"),
    ],
)
async def test_a_repository_that_is_not_clean_is_an_image_error(
    tmp_path: Path, change: str, said: str
) -> None:
    top = make_project_rootfs(tmp_path / "rootfs")
    patch, commit = _seed(top)
    (top / change).write_text("changed\n")
    dirty = Seeded(
        backend_name="bubblewrap",
        image="palestra-test/dirty:1",
        rootfs=tmp_path / "rootfs",
        base_commit=commit,
        patch=patch,
    )
    with pytest.raises(ImageError, match="clean") as caught:
        await dirty.backend(tmp_path).prepare(dirty.spec)
    assert said in caught.value.message


def test_a_patch_without_a_commit_is_no_spec() -> None:
    with pytest.raises(ValueError, match="commit"):
        SandboxSpec(image="a:1", workdir="/testbed", setup_patch="diff --git a/b b/b\n")


# --- layers -----------------------------------------------------------------------


def test_the_patch_is_part_of_the_key_and_its_absence_is_not() -> None:
    plain = SandboxSpec(image="a:1", workdir="/testbed", base_commit="1" * 40)
    keys = {layer_key(replace(plain, setup_patch=patch), "sha256:1") for patch in ("", "a", "b")}
    assert len(keys) == 3
    parts = ["sha256:1", "/testbed", "1" * 40, PROCEDURE]
    assert layer_key(plain, "sha256:1") == hashlib.sha256(orjson.dumps(parts)).hexdigest()[:24]


async def test_layers_go_with_their_images(seeded_here: Seeded, tmp_path: Path) -> None:
    backend = seeded_here.backend(tmp_path)
    await backend.prepare(seeded_here.spec)
    layers = PreparedLayers(tmp_path / "store")
    assert layers.drop_orphans([await backend.identify(seeded_here.image)], []) == 0
    assert layers.drop_orphans([], []) == 1
    assert list((tmp_path / "store/history").iterdir()) == []


PREPARING = """
import asyncio, sys
from pathlib import Path
from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.images import ImageStore
from palestra.environment.sandboxes.protocol import SandboxSpec

folder, image, commit = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
backend = BubblewrapBackend(store=ImageStore(folder / "store"), state_dir=folder / "state")
spec = SandboxSpec(
    image=image, workdir="/testbed", base_commit=commit, setup_patch=sys.stdin.read()
)
asyncio.run(backend.prepare(spec))
"""


def _preparing(seeded: Seeded, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PREPARING, str(folder), seeded.image, seeded.base_commit]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(seeded.patch.encode())
    process.stdin.close()
    return process


async def test_whoever_is_killed_in_the_middle_is_followed_by_the_next(
    seeded_here: Seeded, tmp_path: Path
) -> None:
    backend = seeded_here.backend(tmp_path)
    folder = tmp_path / "store/history"
    for moment in ("*.lock", ".new-*", ".new-*/testbed/.git"):
        killed = _preparing(seeded_here, tmp_path)
        async with asyncio.timeout(60):
            while killed.poll() is None and not list(folder.glob(moment)):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    async with backend.start(seeded_here.spec) as sandbox:
        assert await _found(sandbox, tmp_path) == LEFT
    assert [path.name for path in folder.iterdir() if path.name.startswith(".new-")] == []
