"""No sandbox shows what its repository knew after the base commit, on any backend."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from agent_toys import make_task
from leaky_repository import FUTURES, KEPT, make_leaky_rootfs, marks_in, marks_of

from palestra.config import EnvironmentSection
from palestra.environment.agents.noop import NoopAgent
from palestra.environment.episode import EpisodeRunner
from palestra.environment.grading.fake import ScriptedGrader
from palestra.environment.patch import snapshot, working_tree_diff
from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.engine import EngineBackend
from palestra.environment.sandboxes.engine_api import DOCKER, PODMAN, open_engine
from palestra.environment.sandboxes.engine_prepared import SOURCE_LABEL, drop_outdated
from palestra.environment.sandboxes.images import ImageStore
from palestra.environment.sandboxes.prepared import PreparedLayers
from palestra.environment.sandboxes.protocol import (
    Sandbox,
    SandboxBackend,
    SandboxLimits,
    SandboxSpec,
)
from palestra.errors import ImageError, PalestraError, UnverifiedHistory
from palestra.records import Outcome

ENGINES = {"docker": DOCKER, "podman": PODMAN}
_SEEN = "/testbed /srv /root /tmp"
_LOOK = (
    "cd /testbed; git log --all -p --no-color; git stash list -p; git reflog; git fsck"
    " --lost-found; git cat-file --batch-all-objects --batch; git for-each-ref; cat .git/*_HEAD"
    " .git/config; git worktree list; git notes list; git -C sub log --all -p"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaky:
    """An image with a repository that knows its future."""

    backend_name: str
    image: str
    rootfs: Path
    base_commit: str

    @property
    def spec(self) -> SandboxSpec:
        return SandboxSpec(image=self.image, workdir="/testbed", base_commit=self.base_commit)

    def backend(self, folder: Path) -> SandboxBackend:
        if self.backend_name in ENGINES:
            return EngineBackend(ENGINES[self.backend_name], host_image=self.image)
        store = ImageStore(folder / "store")
        store.add(self.image, self.rootfs, env={"PATH": "/bin", "HOME": "/root"})
        return BubblewrapBackend(store=store, state_dir=folder / "state")


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("leaky") / "rootfs"
    return folder, make_leaky_rootfs(folder)


@pytest.fixture(scope="module", params=["bubblewrap", *ENGINES])
def leaky(
    request: pytest.FixtureRequest,
    rootfs: tuple[Path, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Leaky]:
    folder, base = rootfs
    image = f"palestra-test/leaky:{secrets.token_hex(4)}"
    made = Leaky(backend_name=request.param, image=image, rootfs=folder, base_commit=base)
    try:
        if request.param in ENGINES:
            ENGINES[request.param].find_socket()  # or say that there is none
            _import(made)
        else:
            asyncio.run(BubblewrapBackend(store=None, state_dir=folder.parent / "trial").check())
    except PalestraError as error:
        if os.environ.get("PALESTRA_TEST_REQUIRE"):
            raise
        pytest.skip(f"{request.param}: {error}")
    yield made
    if request.param in ENGINES:
        asyncio.run(_remove(made))


def _import(leaky: Leaky) -> None:
    tar = subprocess.Popen(
        ["tar", "-C", str(leaky.rootfs), "--numeric-owner", "-c", "."], stdout=subprocess.PIPE
    )
    remote = ["--remote"] if leaky.backend_name == "podman" else []
    options = ["--change", "ENV PATH=/bin", "--change", "ENV HOME=/root"]
    with tar:
        subprocess.run(
            [leaky.backend_name, *remote, "import", *options, "-", leaky.image],
            stdin=tar.stdout,
            check=True,
            capture_output=True,
        )


@pytest.fixture(scope="module")
def leaky_here(rootfs: tuple[Path, str]) -> Leaky:
    """The image for bubblewrap, whose layers are files."""
    folder, base = rootfs
    try:
        asyncio.run(BubblewrapBackend(store=None, state_dir=folder.parent / "trial").check())
    except PalestraError as error:
        pytest.skip(f"bubblewrap: {error}")
    return Leaky(
        backend_name="bubblewrap",
        image="palestra-test/leaky:here",
        rootfs=folder,
        base_commit=base,
    )


async def _remove(leaky: Leaky) -> None:
    """Remove the image, with which those that were made from it go."""
    async with open_engine(ENGINES[leaky.backend_name]) as api:
        source = await api.find_image(leaky.image)
        assert source is not None
        assert await drop_outdated(api) == 0
        assert await api.remove_image(leaky.image)
        assert await drop_outdated(api) == 1
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


async def test_nothing_from_after_the_base_commit_can_be_read(leaky: Leaky, tmp_path: Path) -> None:
    backend = leaky.backend(tmp_path)
    async with backend.start(leaky.spec) as sandbox:
        assert await _found(sandbox, tmp_path) == set(KEPT)


async def test_without_hiding_the_same_look_finds_all_of_it(leaky: Leaky, tmp_path: Path) -> None:
    backend = leaky.backend(tmp_path)
    async with backend.start(replace(leaky.spec, base_commit=None)) as sandbox:
        assert await _found(sandbox, tmp_path) == {*KEPT, *FUTURES}


async def test_git_goes_on_working(leaky: Leaky, tmp_path: Path) -> None:
    backend = leaky.backend(tmp_path)
    async with backend.start(leaky.spec) as sandbox:
        assert (await _output(sandbox, "git rev-parse HEAD")).strip() == leaky.base_commit
        log = await _output(sandbox, "git log --format=%s")
        assert log.splitlines() == ["commit past"] * 3
        assert await _output(sandbox, "git tag") == "v1\n"
        assert await _output(sandbox, "git symbolic-ref HEAD") == "refs/heads/main\n"
        status = await _output(sandbox, "git status --porcelain")
        expected = [
            "A  added.txt",
            " M more.txt",
            " M other.txt",
            "A  setup.txt",
            "?? untracked.txt",
        ]
        assert sorted(status.splitlines()) == sorted(expected)
        assert await _output(sandbox, "git diff --name-only") == "more.txt\nother.txt\n"
        assert "dangling" not in await _output(sandbox, "git fsck 2>&1")
        await _output(sandbox, "git -c user.name=a -c user.email=a@b commit -qam mine && git gc -q")


async def test_the_diff_of_an_agent_is_its_own(leaky: Leaky, tmp_path: Path) -> None:
    backend = leaky.backend(tmp_path)
    async with backend.start(leaky.spec) as sandbox:
        base = await snapshot(sandbox)
        assert await working_tree_diff(sandbox, base) == ""
        await _output(sandbox, "echo fixed >code.txt")
        patch = await working_tree_diff(sandbox, base)
        assert patch.count("diff --git") == 1
        assert "+fixed" in patch


async def test_backends_that_know_nothing_of_each_other_can_prepare_at_once(
    leaky: Leaky, tmp_path: Path
) -> None:
    async def tag() -> str:
        async with leaky.backend(tmp_path).start(leaky.spec) as sandbox:
            return await _output(sandbox, "git tag")

    assert await asyncio.gather(tag(), tag(), tag()) == ["v1\n"] * 3


async def test_it_is_done_once(leaky: Leaky, tmp_path: Path) -> None:
    backend = leaky.backend(tmp_path)
    await backend.prepare(leaky.spec)
    before = await _prepared_state(leaky, tmp_path)
    await leaky.backend(tmp_path).prepare(leaky.spec)
    async with backend.start(leaky.spec):
        pass
    assert await _prepared_state(leaky, tmp_path) == before


async def _prepared_state(leaky: Leaky, folder: Path) -> list[str]:
    if leaky.backend_name in ENGINES:
        async with open_engine(ENGINES[leaky.backend_name]) as api:
            return sorted(image.image_id for image in await api.labelled_images(SOURCE_LABEL))
    seals = (folder / "store/history").glob("*.json")
    return sorted(f"{path} {path.stat().st_ino}" for path in seals)


async def test_a_commit_that_the_image_lacks_is_an_image_error(
    leaky: Leaky, tmp_path: Path
) -> None:
    backend = leaky.backend(tmp_path)
    with pytest.raises(ImageError, match="has no commit"):
        async with backend.start(replace(leaky.spec, base_commit="0" * 40)):
            pass


# --- what is not as it was sealed ------------------------------------------------


def _layer(folder: Path) -> tuple[Path, Path]:
    """The one prepared layer of a bubblewrap store, and its seal."""
    (seal,) = (folder / "store/history").glob("*.json")
    return seal.with_suffix(""), seal


def _forge_commit(layer: Path, seal: Path) -> None:
    seal.write_text(seal.read_text().replace(json.loads(seal.read_text())["commit"], "0" * 40))


def _forge_stamp(layer: Path, seal: Path) -> None:
    stamp = layer / "testbed/.git/palestra-history"
    stamp.write_text(stamp.read_text().replace("unreachable 0", "unreachable 7"))


def _remove_stamp(layer: Path, seal: Path) -> None:
    (layer / "testbed/.git/palestra-history").unlink()


def _break_seal(layer: Path, seal: Path) -> None:
    seal.write_bytes(b"{")


def _add_object(layer: Path, seal: Path) -> None:
    folder = layer / "testbed/.git/objects/ab"
    folder.mkdir()
    (folder / ("c" * 38)).write_bytes(zlib.compress(b"blob 3\0fix"))


def _add_ref(layer: Path, seal: Path) -> None:
    commit = json.loads(seal.read_text())["commit"]
    (layer / "testbed/.git/refs/heads/fix").write_text(f"{commit}\n")


def _move_head(layer: Path, seal: Path) -> None:
    (layer / "testbed/.git/HEAD").write_text("ref: refs/heads/nothing\n")


def _show_what_is_below(layer: Path, seal: Path) -> None:
    os.removexattr(layer / "testbed/.git", "user.overlay.opaque")


@pytest.mark.parametrize(
    "change",
    [
        *(_forge_commit, _forge_stamp, _remove_stamp, _break_seal, _add_object, _add_ref),
        *(_move_head, _show_what_is_below),
    ],
)
async def test_what_is_not_as_it_was_sealed_ends_as_an_infra_error(
    leaky_here: Leaky, tmp_path: Path, change: Callable[[Path, Path], None]
) -> None:
    backend = leaky_here.backend(tmp_path)
    await backend.prepare(leaky_here.spec)
    change(*_layer(tmp_path))
    with pytest.raises(UnverifiedHistory):
        async with backend.start(leaky_here.spec):
            pass
    runner = EpisodeRunner(
        backend,
        NoopAgent(),
        ScriptedGrader(lambda *_: True),
        EnvironmentSection(),
        SandboxLimits(),
    )
    task = replace(
        make_task(), image=leaky_here.image, base_commit=leaky_here.base_commit, files=()
    )
    episode = await runner.run(task, None)
    assert (episode.outcome, episode.exit_status) == (Outcome.INFRA_ERROR, "UnverifiedHistory")
    assert episode.reward is None


# --- at once, and killed ---------------------------------------------------------

PREPARING = """
import asyncio, json, sys
from pathlib import Path
from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.images import ImageStore
from palestra.environment.sandboxes.protocol import SandboxSpec

folder, image, commit = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
backend = BubblewrapBackend(store=ImageStore(folder / "store"), state_dir=folder / "state")
print("begins", flush=True)
asyncio.run(backend.prepare(SandboxSpec(image=image, workdir="/testbed", base_commit=commit)))
"""


def _preparing(leaky: Leaky, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PREPARING, str(folder), leaky.image, leaky.base_commit]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def test_many_at_once_make_one_layer(leaky_here: Leaky, tmp_path: Path) -> None:
    backend = leaky_here.backend(tmp_path)
    others = [_preparing(leaky_here, tmp_path) for _ in range(2)]
    await asyncio.gather(*(backend.prepare(leaky_here.spec) for _ in range(3)))
    for other in others:
        assert await asyncio.to_thread(other.wait, 60) == 0
        assert other.stdout is not None
        other.stdout.close()
    layer, _ = _layer(tmp_path)
    folders = [path for path in layer.parent.iterdir() if path.is_dir()]
    assert folders == [layer], "somebody left something behind"
    async with backend.start(leaky_here.spec) as sandbox:
        assert await _found(sandbox, tmp_path) == set(KEPT)


async def test_whoever_is_killed_in_the_middle_is_followed_by_the_next(
    leaky_here: Leaky, tmp_path: Path
) -> None:
    backend = leaky_here.backend(tmp_path)
    folder = tmp_path / "store/history"
    for moment in ("*.lock", ".new-*", ".new-*/testbed/.git"):
        killed = _preparing(leaky_here, tmp_path)
        async with asyncio.timeout(60):
            while killed.poll() is None and not list(folder.glob(moment)):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    async with backend.start(leaky_here.spec) as sandbox:
        assert await _found(sandbox, tmp_path) == set(KEPT)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".new-")] == []


async def test_a_layer_without_a_seal_is_made_anew(leaky_here: Leaky, tmp_path: Path) -> None:
    backend = leaky_here.backend(tmp_path)
    await backend.prepare(leaky_here.spec)
    layer, seal = _layer(tmp_path)
    _add_object(layer, seal)
    seal.unlink()
    async with backend.start(leaky_here.spec) as sandbox:
        assert await _found(sandbox, tmp_path) == set(KEPT)


async def test_layers_go_with_their_images(leaky_here: Leaky, tmp_path: Path) -> None:
    backend = leaky_here.backend(tmp_path)
    await backend.prepare(leaky_here.spec)
    layer, _ = _layer(tmp_path)
    layers = PreparedLayers(tmp_path / "store")
    assert layers.drop_orphans([await backend.identify(leaky_here.image)], []) == 0
    assert layers.drop_orphans([], [layer.name]) == 0
    assert layers.drop_orphans([], []) == 1
    assert list((tmp_path / "store/history").iterdir()) == []


async def test_a_folder_that_somebody_worked_in_is_prepared_anew(
    leaky_here: Leaky, tmp_path: Path
) -> None:
    backend = leaky_here.backend(tmp_path)
    before = await backend.identify(leaky_here.image)
    (leaky_here.rootfs / "testbed/.git/HEAD").touch()
    assert await backend.identify(leaky_here.image) != before
