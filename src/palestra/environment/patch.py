"""What an agent changed: our own diff of the working tree, whatever it hands in as text."""

from __future__ import annotations

import re

from palestra.environment.sandboxes.protocol import CommandResult, Sandbox
from palestra.environment.sandboxes.repository import commit_of
from palestra.errors import ImageError, PalestraError, SandboxError
from palestra.records import Task

DIFF_TIMEOUT_S = 120.0
PATCH_LIMIT_BYTES = 64 << 20
_TAIL_CHARS = 300
_LOST = re.compile(r"^(?:deleted file mode|rename from) ", re.MULTILINE)

# The repository may belong to another user; a file-system monitor would be the agent's
# own program; names outside ASCII are quoted, so that the patch survives any reader. The
# others would make git overlook a mode or change line ends, where files count as they are.
_GIT = (
    "git -c safe.directory='*' -c core.fsmonitor=false -c core.quotePath=true "
    "-c core.fileMode=true -c core.autocrlf=false -c core.safecrlf=false"
)
# Plumbing, so that no setting of the agent's changes the format.
_DIFF = (
    "diff-index --cached -p -M --binary --full-index --no-ext-diff --no-textconv --no-color"
    # A repository inside the repository is no part of a patch.
    " --ignore-submodules=all"
)
# What UTF-8 cannot say is sent as git's own binary patch, which is plain ASCII.
_ALL_BINARY = (
    'g="$(git rev-parse --git-path info)" && mkdir -p "$g" && echo "* -diff" >"$g/attributes"'
)


class UnreadableTree(PalestraError):
    """git cannot read the working tree any more: the agent broke it."""


async def snapshot(sandbox: Sandbox, *, clean: bool = False) -> str:
    """Id of the tree that holds the working tree as it is now, untracked files included.

    Taken before the agent starts, it is the base of its diff: images come with
    changes of their own, and agents commit.

    Args:
        sandbox: where the working tree is.
        clean: the tree is known to be as committed, which is quicker.

    Raises:
        ImageError: the working directory is not in a git repository.
        SandboxError: the sandbox failed.
    """
    committed = f"{_GIT} rev-parse HEAD"
    staged = f"{_stage(sandbox)}\n{_GIT} write-tree"
    done = await _run(sandbox, committed if clean else staged)
    tree = done.output.strip()
    if done.exit_code != 0 or not tree.isalnum():
        raise ImageError(
            f"no snapshot of {sandbox.workdir}: {_tail(done)}",
            hint="the task's image needs git, and its repository in the working directory",
        )
    return tree


class StartTrees:
    """Finds the tree that a task starts with, asking git inside only where it must.

    The files of a row are laid out as one commit, whose id follows from them. That the
    image has git, and that the backend lays them out so, is seen once for each image.
    """

    def __init__(self) -> None:
        self._proven: set[str] = set()

    async def of(self, task: Task, sandbox: Sandbox) -> str:
        """The id of the tree, or of a commit of it, in the fresh ``sandbox`` of ``task``.

        Raises:
            ImageError: the working directory is not in a git repository.
            SandboxError: the sandbox failed.
        """
        if not task.files:
            return await snapshot(sandbox)
        expected = commit_of(task.files)
        if task.image in self._proven:
            return expected
        found = await snapshot(sandbox, clean=True)
        if found == expected:
            self._proven.add(task.image)
        return found


async def working_tree_diff(sandbox: Sandbox, base_commit: str) -> str:
    """The diff of the working tree against ``base_commit``, as ``git apply`` reads it.

    Untracked files, renames, modes and binary files are in it; the index of the
    repository is not touched. Files that git ignores are in it where they were there at
    the base, or where the agent added them by force.

    Args:
        sandbox: where the working tree is.
        base_commit: a commit, a tree (of :func:`snapshot`) or ``HEAD``.

    Raises:
        UnreadableTree: the agent left a tree that git cannot read, or a diff that is
            too large.
        SandboxError: the sandbox failed.
    """
    command = f"{_stage(sandbox)}\n{_GIT} {_DIFF} {base_commit} --"
    patch = await _diff(sandbox, command)
    if _LOST.search(patch):
        command = f"{_stage(sandbox)}\n{_restore(base_commit)}\n{command}"
        patch = await _diff(sandbox, command)
    if "\ufffd" in patch:
        patch = await _diff(sandbox, f"{_ALL_BINARY}\n{command}")
    return patch


def _stage(sandbox: Sandbox) -> str:
    """Bash that stages the whole working tree in an index file of our own.

    It starts as a copy of the repository's, whose file times spare git from
    reading every file.
    """
    index = f"/tmp/palestra-{sandbox.sandbox_id}.index"
    add = f"{_GIT} add -A --ignore-errors"
    return (
        f"export GIT_INDEX_FILE={index} GIT_OPTIONAL_LOCKS=0\n"
        # With its time: an entry that is not older than its index is read anew.
        f"[ -f {index} ] || cp -p -- .git/index {index} 2>/dev/null\n"
        # 1: some files could not be read (a repository without commits is one such);
        # the others are staged. Otherwise again, to hear why: keeping what it says would
        # cost each of the others a process.
        f"{add} >/dev/null 2>&1\n[ $? -le 1 ] || {{ {add} 2>&1; exit 1; }}"
    )


def _restore(base_commit: str) -> str:
    """Bash that puts back into the index what the base had and the agent took out.

    What is not on the disk either is gone again when all is staged the next time. But a
    file that git ignores would not be staged by itself.
    """
    return (
        f"{_GIT} diff-index --cached --no-renames --diff-filter=D --name-only -z {base_commit} --"
        f" | xargs -0 -r {_GIT} ls-tree -z --full-tree {base_commit} --"
        f" | {_GIT} update-index -z --index-info"
    )


async def _diff(sandbox: Sandbox, command: str) -> str:
    done = await _run(sandbox, command)
    if done.exit_code != 0:
        raise UnreadableTree(f"git cannot read the working tree: {_tail(done)}")
    if done.elided_bytes:
        raise UnreadableTree(f"the diff is larger than {PATCH_LIMIT_BYTES >> 20} MiB")
    return done.output


async def _run(sandbox: Sandbox, command: str) -> CommandResult:
    done = await sandbox.run(
        command, timeout_s=DIFF_TIMEOUT_S, output_limit_bytes=PATCH_LIMIT_BYTES
    )
    if done.timed_out:
        raise SandboxError(f"reading the working tree took more than {DIFF_TIMEOUT_S:g} s")
    return done


def _tail(done: CommandResult) -> str:
    return done.output.strip()[-_TAIL_CHARS:] or f"exit code {done.exit_code}"
