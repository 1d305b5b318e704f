"""A repository without a future: what an image's repository knew after the base commit is gone.

Images are made from clones, and a clone holds every later commit, tag and branch: the fix that
an agent is asked for is one ``git log --all`` away. So each image is prepared once for each base
commit, in a sandbox of its own (``hide_future.sh`` says how), and what that changed is kept as a
layer over the image. With a setup patch, the base commit itself is made first: the patched
tree as the one commit of the repository, and what the patch took out is gone with the rest.
The maker of a layer keeps its :class:`Seal` outside of it; a sandbox that
starts on the layer must look exactly as the seal says, or it is not used.
"""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

import orjson

from palestra.environment.sandboxes.protocol import Sandbox, SandboxLimits, SandboxSpec
from palestra.errors import ImageError, UnverifiedHistory
from palestra.records import HOST_IMAGE

PROCEDURE = 2
"""Raised whenever ``hide_future.sh`` changes what it leaves; older layers then do not count."""
HIDE_TIMEOUT_S = 1800.0
VERIFY_TIMEOUT_S = 60.0
HIDING_LIMITS = SandboxLimits(memory_bytes=8 << 30, num_pids=512, disk_bytes=32 << 30)
"""Of the sandbox in which an image is prepared; packing takes memory."""

_PATCH_FILE = "/tmp/palestra-setup.patch"
_HINT = "the image needs git, and a repository that holds the base commit"
_SETUP_HINT = "the image needs git, and the clean repository that the setup patch was made against"
_TAIL_CHARS = 400
_STATE_LIMIT_BYTES = 4 << 20
# What git says of HEAD, what stands in the files that name refs, and every file with its size:
# a loose object, a second pack, a ref, a reflog or an alternate is one that the seal does not
# know. Few processes, since every start of a sandbox pays for them.
_STATE = (
    "git -c safe.directory='*' -c core.fsmonitor=false rev-parse HEAD 2>&1\n"
    "cd .git 2>/dev/null && cat palestra-history HEAD config packed-refs"
    " && find . ! -type d -exec wc -c {} +"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """What a prepared repository looks like.

    Attributes:
        commit: after which nothing is left.
        procedure: that was followed.
        state_sha256: of all that :func:`verify` looks at.
    """

    commit: str
    procedure: int
    state_sha256: str

    def to_bytes(self) -> bytes:
        """As JSON."""
        return orjson.dumps(asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> Seal:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            UnverifiedHistory: it is no seal.
        """
        try:
            fields: dict[str, Any] = orjson.loads(data)
            return cls(
                commit=str(fields["commit"]),
                procedure=int(fields["procedure"]),
                state_sha256=str(fields["state_sha256"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UnverifiedHistory(f"the seal of a prepared image is broken: {error}") from None


def wants_hiding(spec: SandboxSpec) -> bool:
    """Whether the sandbox is to hold nothing from after a commit of its image's repository."""
    return spec.base_commit is not None and spec.image != HOST_IMAGE and not spec.files


def layer_key(spec: SandboxSpec, identity: str) -> str:
    """A name for the layer that tells apart everything that makes it.

    Args:
        spec: names the repository's folder, the commit and the setup patch.
        identity: of the image's content.
    """
    parts: list[str | int | None] = [identity, spec.workdir, spec.base_commit, PROCEDURE]
    if spec.setup_patch:
        parts.append(spec.setup_patch)
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()[:24]


async def hide_future(sandbox: Sandbox, commit: str, setup_patch: str = "") -> Seal:
    """Remove from ``sandbox`` whatever its repository knows after ``commit``.

    Args:
        sandbox: with the image as it is.
        commit: the last that stays.
        setup_patch: makes ``commit`` of what the repository holds; empty: it is there.

    Raises:
        ImageError: the repository does not hold the commit, the patch does not make it, or
            the repository cannot be read.
        SandboxError: the sandbox failed.
    """
    script = resources.files(__package__).joinpath("hide_future.sh").read_text(encoding="utf-8")
    arguments = [sandbox.workdir, commit, str(PROCEDURE)]
    if setup_patch:
        await sandbox.write_file(_PATCH_FILE, setup_patch.encode())
        arguments.append(_PATCH_FILE)
    done = await sandbox.run(f"set -- {shlex.join(arguments)}\n{script}", timeout_s=HIDE_TIMEOUT_S)
    if done.exit_code != 0:
        why = done.output.strip()[-_TAIL_CHARS:] or f"exit code {done.exit_code}"
        hit = f", and hit the limit of {done.limit}" if done.limit else ""
        raise ImageError(
            f"{sandbox.workdir}: what came after {commit} cannot be hidden{hit}: {why}",
            hint=_SETUP_HINT if setup_patch else _HINT,
        )
    state = await _state(sandbox)
    _check(state, commit)
    return Seal(commit=commit, procedure=PROCEDURE, state_sha256=_digest(state))


async def verify(sandbox: Sandbox, seal: Seal, commit: str) -> None:
    """Make sure that the repository in the fresh ``sandbox`` is the one that was sealed.

    Raises:
        UnverifiedHistory: it is not, or was sealed for another commit or by another procedure.
        SandboxError: the sandbox failed.
    """
    if seal.commit != commit or seal.procedure != PROCEDURE:
        raise UnverifiedHistory(
            f"the prepared image was sealed for {seal.commit} by procedure {seal.procedure}, "
            f"and {commit} by procedure {PROCEDURE} is wanted"
        )
    state = await _state(sandbox)
    _check(state, commit)
    if _digest(state) != seal.state_sha256:
        raise UnverifiedHistory(
            f"the repository in {sandbox.workdir} is not as it was sealed for {commit}",
            hint="the prepared image was changed or is broken; remove it, and it is made anew",
        )


async def _state(sandbox: Sandbox) -> str:
    done = await sandbox.run(
        _STATE, timeout_s=VERIFY_TIMEOUT_S, output_limit_bytes=_STATE_LIMIT_BYTES
    )
    if done.exit_code != 0 or done.elided_bytes:
        raise UnverifiedHistory(
            f"the repository in {sandbox.workdir} has no seal: {done.output[-_TAIL_CHARS:]}"
        )
    return done.output


def _check(state: str, commit: str) -> None:
    """Raise unless the stamp names this commit, git agrees, and nothing was left over."""
    lines = state.splitlines()
    stamp = [f"palestra history {PROCEDURE}", f"commit {commit}", "unreachable 0"]
    at = lines.index(stamp[0]) if stamp[0] in lines else 0
    if lines[at : at + len(stamp)] != stamp:
        raise UnverifiedHistory(f"no stamp says that nothing follows {commit}")
    if not lines[0].startswith(commit):
        raise UnverifiedHistory(f"HEAD is {lines[0]!r}, not {commit}")


def _digest(state: str) -> str:
    # Folders are listed in another order by another file system.
    lines = "\n".join(sorted(state.splitlines()))
    return hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()
