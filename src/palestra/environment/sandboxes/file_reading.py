"""Reading a file by a command inside: what every backend with a channel says and expects."""

from __future__ import annotations

import shlex

from palestra.errors import SandboxError

_NO_FILE = 44


def check_path(path: str) -> None:
    """Refuse what is not the absolute path of a file.

    Raises:
        ValueError: it is not.
    """
    if not path.startswith("/") or "\0" in path or path.endswith("/"):
        raise ValueError(f"not the absolute path of a file: {path!r}")


def read_command(path: str, *, max_bytes: int) -> str:
    """The command that prints a regular file, and at most one byte more than ``max_bytes``.

    Never more than asked for leaves the sandbox, however large the file says it is.

    Raises:
        ValueError: ``path`` is not absolute.
    """
    check_path(path)
    target = shlex.quote(path)
    return (
        f"[ -f {target} ] && [ -r {target} ] || exit {_NO_FILE}; "
        f"exec head -c {max_bytes + 1} -- {target} 2>/dev/null"
    )


def read_answer(path: str, exit_code: int, data: bytes, *, max_bytes: int) -> bytes:
    """``data`` that :func:`read_command` printed, if it is the file.

    Raises:
        FileNotFoundError: there is no such regular file that can be read.
        ValueError: it is larger than ``max_bytes``.
        SandboxError: the command failed otherwise.
    """
    if exit_code == _NO_FILE:
        raise FileNotFoundError(f"no readable regular file in the sandbox: {path}")
    if exit_code != 0:
        raise SandboxError(f"cannot read {path} in the sandbox (exit {exit_code})")
    if len(data) > max_bytes:
        raise ValueError(f"{path} is larger than {max_bytes} bytes")
    return data
