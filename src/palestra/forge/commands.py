"""Commands of this machine, git above all, on the folders that they are told and no others."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

from palestra.errors import HostError

_TIMEOUT_S = 300.0
_TAIL_CHARS = 300


def output(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    timeout_s: float = _TIMEOUT_S,
) -> str:
    """What a command prints.

    It sees this process's environment without git's variables: ``GIT_DIR`` and the like, which
    hooks have, would make git work on another repository than the one that is named.

    Args:
        command: the program and its arguments.
        env: variables that it gets besides.
        timeout_s: when it is killed.

    Raises:
        HostError: it cannot be run, fails or takes too long.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            command,
            env={**clean, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode != 0:
        said = done.stderr.strip()[-_TAIL_CHARS:]
        raise HostError(f"{' '.join(command[:4])} failed: {said}")
    return done.stdout
