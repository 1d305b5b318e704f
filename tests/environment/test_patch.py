"""The diff of a working tree, with real git; what it says is applied elsewhere to check it."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from agent_toys import make_task, toy_spec

from palestra.environment.patch import StartTrees, UnreadableTree, snapshot, working_tree_diff
from palestra.environment.sandboxes.fake import FakeSandboxBackend
from palestra.environment.sandboxes.protocol import CommandResult, Sandbox, SandboxSpec
from palestra.errors import ImageError
from palestra.records import HOST_IMAGE


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with FakeSandboxBackend().start(toy_spec(make_task())) as started:
        yield started


async def sh(sandbox: Sandbox, command: str) -> str:
    done = await sandbox.run(command, timeout_s=20)
    assert done.exit_code == 0, done.output
    return done.output


async def applied(patch: str, tmp_path: Path) -> Path:
    """A pristine tree with ``patch`` applied."""
    async with FakeSandboxBackend().start(toy_spec(make_task())) as pristine:
        apply(patch, Path(pristine.workdir), tmp_path / "applied")
    return tmp_path / "applied"


def apply(patch: str, pristine: Path, copy: Path) -> None:
    subprocess.run(["cp", "-a", str(pristine), str(copy)], check=True)
    command = ["git", "apply", "--whitespace=nowarn", "-"]
    subprocess.run(command, cwd=copy, input=patch.encode(), check=True)


def same(left: Path, right: Path) -> None:
    told = subprocess.run(
        ["diff", "-r", "--no-dereference", "-x", ".git", str(left), str(right)],
        capture_output=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout


async def test_an_untouched_tree_has_no_diff(sandbox: Sandbox) -> None:
    assert await working_tree_diff(sandbox, "HEAD") == ""
    assert await working_tree_diff(sandbox, await snapshot(sandbox)) == ""


CHANGES = {
    "edit": "echo '# end' >>calc.py",
    "new file": "mkdir -p a/b && echo new >a/b/c.txt",
    "no newline at the end": "printf 'x = 1' >bare.py",
    "carriage returns": "printf 'a\\r\\nb\\r\\n' >dos.txt",
    "deleted": "rm calc.py",
    "renamed": "mv calc.py sums.py",
    "mode": "chmod +x calc.py",
    "symlink": "ln -s calc.py link.py",
    "binary": "head -c 3000 /dev/urandom >blob.bin",
    "latin-1": "printf 'n = \"caf\\xe9\"\\n' >latin.py",
    "odd names": "echo 1 >'with space.py'; echo 2 >'ünï.py'; echo 3 >$'quo\"te\\ttab.py'",
    "replacement character": "echo '�' >odd.txt",
    "committed": "echo '# c' >>calc.py && git -c user.name=a -c user.email=a@b commit -qam x",
    "staged": "echo '# s' >>calc.py && echo n >n.py && git add -A",
    "empty file": "touch empty.py",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
async def test_applying_the_diff_gives_the_same_tree(
    sandbox: Sandbox, change: str, tmp_path: Path
) -> None:
    base = await snapshot(sandbox)
    await sh(sandbox, change)
    patch = await working_tree_diff(sandbox, base)
    assert patch
    patch.encode()  # it crosses the wire as text
    same(Path(sandbox.workdir), await applied(patch, tmp_path))


async def test_renames_are_said_as_renames(sandbox: Sandbox) -> None:
    await sh(sandbox, "mv calc.py sums.py")
    patch = await working_tree_diff(sandbox, "HEAD")
    assert "rename from calc.py\nrename to sums.py" in patch


async def test_what_was_there_before_is_no_change(sandbox: Sandbox) -> None:
    # Images come with leftovers of their builds, committed nowhere.
    await sh(sandbox, "echo built >left.o; echo '# image' >>calc.py")
    base = await snapshot(sandbox)
    await sh(sandbox, "echo mine >mine.py")
    patch = await working_tree_diff(sandbox, base)
    assert "mine.py" in patch
    assert "left.o" not in patch
    assert "calc.py" not in patch


async def test_the_index_and_ignored_files_are_left_alone(sandbox: Sandbox) -> None:
    await sh(sandbox, "echo 'x.tmp' >.gitignore; echo 1 >x.tmp; echo 2 >y.py")
    before = await sh(sandbox, "git status --porcelain; sha1sum .git/index")
    patch = await working_tree_diff(sandbox, "HEAD")
    assert "b/y.py" in patch
    assert "b/x.tmp" not in patch
    assert await sh(sandbox, "git status --porcelain; sha1sum .git/index") == before


async def test_settings_of_the_agent_do_not_change_the_format(sandbox: Sandbox) -> None:
    await sh(
        sandbox,
        "git config diff.noprefix true; git config diff.mnemonicPrefix true; "
        "git config color.ui always; git config diff.external /bin/false; "
        "git config core.fsmonitor /bin/false; git config diff.bad.textconv /bin/false; "
        "git config core.pager cat; echo '*.py diff=bad' >.git/info/attributes; "
        "git config diff.renames false; touch .git/index.lock; echo '# x' >>calc.py",
    )
    patch = await working_tree_diff(sandbox, "HEAD")
    assert patch.startswith("diff --git a/calc.py b/calc.py\n"), patch
    assert "+# x" in patch


@pytest.mark.parametrize("damage", ["rm -rf .git", "rm -rf .git/objects", "echo x >.git/HEAD"])
async def test_a_broken_repository_is_the_agents_doing(sandbox: Sandbox, damage: str) -> None:
    base = await snapshot(sandbox)
    await sh(sandbox, f"echo 1 >>calc.py; {damage}")
    with pytest.raises(UnreadableTree):
        await working_tree_diff(sandbox, base)


COMMIT = "git add . && git -c user.name=a -c user.email=a@b commit -qm x"


@pytest.mark.parametrize("commit", ["true", COMMIT], ids=["empty", "with a commit"])
async def test_a_repository_inside_is_left_out(sandbox: Sandbox, commit: str) -> None:
    await sh(sandbox, f"echo '# x' >>calc.py; mkdir sub; cd sub; git init -q; echo 1 >f; {commit}")
    patch = await working_tree_diff(sandbox, "HEAD")
    assert "+# x" in patch
    assert "sub" not in patch


class Asked:
    """A sandbox that counts the commands it is given."""

    def __init__(self, inner: Sandbox) -> None:
        self._inner = inner
        self.sandbox_id, self.workdir = inner.sandbox_id, inner.workdir
        self.read_file, self.write_file = inner.read_file, inner.write_file
        self.num_commands = 0

    async def run(
        self, command: str, *, timeout_s: float, output_limit_bytes: int = 1 << 20
    ) -> CommandResult:
        self.num_commands += 1
        return await self._inner.run(
            command, timeout_s=timeout_s, output_limit_bytes=output_limit_bytes
        )


async def test_the_start_of_a_row_with_files_is_asked_for_once_an_image(sandbox: Sandbox) -> None:
    trees, asked, task = StartTrees(), Asked(sandbox), make_task()
    head = (await sh(sandbox, "git rev-parse HEAD")).strip()
    assert [await trees.of(task, asked) for _ in range(3)] == [head] * 3
    assert asked.num_commands == 1
    await trees.of(replace(task, image="another"), asked)
    assert asked.num_commands == 2
    # Without files in the row nothing is known beforehand.
    tree = (await sh(sandbox, "git rev-parse HEAD^{tree}")).strip()
    assert [await trees.of(replace(task, files=()), asked) for _ in range(2)] == [tree] * 2
    assert asked.num_commands == 4


async def test_a_start_that_is_not_as_expected_is_asked_for_again(sandbox: Sandbox) -> None:
    trees, asked, task = StartTrees(), Asked(sandbox), make_task()
    await sh(sandbox, "git -c user.name=a -c user.email=a@b commit -q --amend -m other")
    head = (await sh(sandbox, "git rev-parse HEAD")).strip()
    assert [await trees.of(task, asked) for _ in range(2)] == [head] * 2
    assert asked.num_commands == 2


async def test_an_image_without_a_repository_is_named_as_such() -> None:
    spec = SandboxSpec(image=HOST_IMAGE, workdir="/testbed")
    async with FakeSandboxBackend().start(spec) as bare:
        with pytest.raises(ImageError, match="git"):
            await snapshot(bare)
