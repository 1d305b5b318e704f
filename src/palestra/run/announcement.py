"""What an environment server tells the process that started it: one line, once."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import orjson

from palestra.environment.sandboxes.choose import Choice
from palestra.errors import EnvironmentUnavailable, NoIsolation, SandboxUnavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """The server takes requests: where, and in which sandboxes it runs them."""

    url: str
    backend: str
    sandbox: str
    """A line for people about the choice of the backend."""

    @classmethod
    def of(cls, url: str, choice: Choice) -> Announcement:
        """For a server at ``url`` that took ``choice``."""
        return cls(url=url, backend=choice.backend.name, sandbox=choice.describe())

    def to_line(self) -> bytes:
        """The line to send."""
        return orjson.dumps(asdict(self), option=orjson.OPT_APPEND_NEWLINE)


def refusal_line(error: SandboxUnavailable) -> bytes:
    """The line of a server that cannot start any sandbox."""
    refusal = {
        "refused": error.message,
        "hint": error.hint,
        "no_isolation": isinstance(error, NoIsolation),
    }
    return orjson.dumps(refusal, option=orjson.OPT_APPEND_NEWLINE)


def parse_line(line: bytes) -> Announcement:
    """Read the line of either kind.

    Raises:
        SandboxUnavailable: the server said so; of the kind that it was.
        EnvironmentUnavailable: it is neither line.
    """
    try:
        said = orjson.loads(line)
        if "refused" not in said:
            return Announcement(**said)
        kind = NoIsolation if said["no_isolation"] else SandboxUnavailable
        refusal = kind(str(said["refused"]), hint=said["hint"])
    except (ValueError, TypeError, KeyError):
        raise EnvironmentUnavailable(
            f"the environment server announced itself with {line[:200]!r}"
        ) from None
    raise refusal
