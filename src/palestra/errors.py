"""One exception per boundary, so that each failure is named once, where it happens.

::

    PalestraError
    ├─ UsageError                 the user can mend it: said in one line, exit code 2
    │  ├─ ConfigError             a recipe or an option is wrong
    │  ├─ TaskError               a task file or row cannot be used
    │  ├─ MissingExtra            an optional dependency is not installed
    │  └─ HostError               port taken, disk full, no permission
    ├─ InfraError                 nobody's policy is to blame: never a reward of 0
    │  ├─ QueueTimeout            no place at work became free in time
    │  ├─ SandboxError
    │  │  ├─ SandboxUnavailable   this machine cannot run the backend at all
    │  │  │  └─ NoIsolation       nor any other backend that isolates
    │  │  ├─ ImageError           the task's image is unknown or broken
    │  │  │  ├─ ImageTimeout      it did not come in time
    │  │  │  └─ RegistryTrouble   the registry is busy or not there: later it may come
    │  │  ├─ SandboxStartError    it did not come up
    │  │  ├─ SandboxDied          it went away in the middle of a command
    │  │  ├─ UnverifiedHistory    its repository may hold what came after the base commit
    │  │  └─ AgentTimeout         the agent did not keep its own time limit
    │  ├─ ModelUnavailable        the policy endpoint cannot be reached or is broken
    │  ├─ GradingError            the grader itself failed (not the agent's patch)
    │  │  └─ GradingTimeout
    │  ├─ EnvironmentUnavailable  the environment server cannot be reached or misbehaves
    │  ├─ GatewayError            the gateway cannot be reached or lost a session
    │  └─ EngineError             the sampling engine failed
    ├─ ContextOverflow            the conversation no longer fits the model: ends an episode
    ├─ CheckpointError            a checkpoint cannot be written or read
    └─ DeploymentError            a service of palestra up does not come up
"""

from __future__ import annotations

import errno
from collections.abc import Sequence


class PalestraError(Exception):
    """Base of every error we raise on purpose.

    Args:
        message: what was wrong and where.
        hint: what to do about it, when that is known.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(PalestraError):
    """The user can mend this; the command line prints it as one line."""

    exit_code = 2


class ConfigError(UsageError):
    """A recipe, an override or an option is wrong."""


class TaskError(UsageError):
    """A task file, source or row cannot be used; names the file and the row."""


class MissingExtra(UsageError):
    """An optional dependency is needed and not installed."""

    @classmethod
    def named(cls, extra: str, *, needed_for: str, module: str) -> MissingExtra:
        """Build the error for ``extra`` whose absence showed as a missing ``module``."""
        return cls(
            f"{needed_for} needs the package {module!r}, which is not installed",
            hint=f"pip install 'palestra[{extra}]'",
        )


class HostError(UsageError):
    """The machine refused: a port taken, a disk full, no permission."""

    @classmethod
    def from_os(cls, error: OSError, *, doing: str) -> HostError:
        """Say in one line what could not be done and what to do about ``error``."""
        what, hint = _OS_REASONS.get(error.errno or 0, (error.strerror or str(error), None))
        where = f" ({error.filename})" if error.filename else ""
        return cls(f"{doing}{where}: {what}", hint=hint)


_OS_REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space or choose another folder"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or choose another folder"),
    errno.EACCES: ("no permission", "choose a folder that you may write"),
    errno.EPERM: ("no permission", "choose a folder that you may write"),
    errno.EROFS: ("the file system is read-only", "choose a folder that you may write"),
    errno.EADDRINUSE: ("the port is taken", "choose another, or 0 for any free one"),
    errno.EADDRNOTAVAIL: ("this machine has no such address", "127.0.0.1 always works"),
}


class InfraError(PalestraError):
    """Infrastructure trouble: retried or dropped, never rewarded with 0."""


class QueueTimeout(InfraError):
    """An episode waited too long for its turn."""


class SandboxError(InfraError):
    """A sandbox could not do its duty."""


class SandboxUnavailable(SandboxError):
    """This machine cannot run the sandbox backend at all."""

    exit_code = 2


class NoIsolation(SandboxUnavailable):
    """No backend that isolates can start here; only the local one could go on."""


class ImageError(SandboxError):
    """The task's image is unknown, incomplete or cannot be unpacked."""


class ImageTimeout(ImageError):
    """The task's image did not come in time."""


class RegistryTrouble(ImageError):
    """The registry is busy or cannot be reached: later it may work."""


class SandboxStartError(SandboxError):
    """The sandbox did not come up."""


class SandboxDied(SandboxError):
    """The sandbox went away while a command was running or before it."""


class UnverifiedHistory(SandboxError):
    """Nothing proves that the repository holds no commit from after the base commit."""


class AgentTimeout(SandboxError):
    """The agent went on long after its own time limit."""


class ModelUnavailable(InfraError):
    """The policy endpoint cannot be reached or answers nonsense."""


class GradingError(InfraError):
    """The grader failed for reasons that are not the agent's."""


class GradingTimeout(GradingError):
    """The hidden tests did not finish in time; keeps the partial log."""

    def __init__(self, message: str, *, hint: str | None = None, log: str = "") -> None:
        super().__init__(message, hint=hint)
        self.log = log


class EnvironmentUnavailable(InfraError):
    """The environment server cannot be reached or broke its protocol."""


class GatewayError(InfraError):
    """The gateway cannot be reached or does not know the session."""


class EngineError(InfraError):
    """The sampling engine failed."""


class ContextOverflow(PalestraError):
    """The conversation no longer fits the model's context or the session's token budget."""


class CheckpointError(PalestraError):
    """A checkpoint cannot be written, read or trusted."""


class DeploymentError(PalestraError):
    """Compose failed, or a service did not become healthy; keeps the last lines it printed."""

    def __init__(self, message: str, *, hint: str | None = None, log: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.log = tuple(log)
