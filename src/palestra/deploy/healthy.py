"""Whether a service of this deployment does its work; run inside its container.

``environment``: its server answers. ``trainer``: it has served its policy once and goes on, or
has ended well. ``wait``: come back when the environment server answers. The exit code and one
line say it. Only the standard library: this runs every few seconds.
"""

from __future__ import annotations

import base64
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

STATE = Path("/run/palestra")
GATEWAY = "http://127.0.0.1:11001/v1/models"
SERVER = "http://x:{token}@127.0.0.1:11000"
TIMEOUT_S = 10.0
POLL_S = 2.0
FAILED = "failed: "
"""Begins what is said of a service that will not become healthy any more."""


def trouble(url: str) -> str | None:
    """Why ``url``, which may hold credentials, does not answer with success; else ``None``."""
    parts = urllib.parse.urlsplit(url)
    try:
        bare = parts._replace(netloc=f"{parts.hostname}:{parts.port or 80}").geturl()
        request = urllib.request.Request(bare)
        if parts.password is not None:
            words = f"{parts.username or ''}:{urllib.parse.unquote(parts.password)}"
            request.add_header(
                "Authorization", f"Basic {base64.b64encode(words.encode()).decode()}"
            )
        # A proxy for the internet has no business between our services.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=TIMEOUT_S):
            return None
    except urllib.error.HTTPError as error:
        return f"{bare} answered {error.code}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return f"{parts.hostname}:{parts.port or 80} cannot be reached: {reason}"


def environment() -> str | None:
    """What is wrong with the environment server of this container."""
    token = urllib.parse.quote(os.environ.get("PALESTRA_TOKEN", ""), safe="")
    return trouble(SERVER.format(token=token) + "/health")


def trainer() -> str | None:
    """What is wrong with the training in this container."""
    ended = STATE / "ended"
    if ended.exists():
        code = ended.read_text().strip()
        return None if code == "0" else f"{FAILED}training has ended with exit code {code}"
    began = STATE / "began"
    if began.exists():
        return None
    said = trouble(GATEWAY)
    if said is None:
        began.touch()
        return None
    return "the policy is not served yet"


def wait() -> str | None:
    """Return when the environment server answers, or why it did not in time."""
    url = os.environ.get("SWE_AGENT_GYM_URL", "")
    if not url:
        return None
    deadline_s = time.monotonic() + float(os.environ.get("PALESTRA_WAIT_S") or 600)
    said = ""
    while (found := trouble(url.rstrip("/") + "/health")) is not None:
        if time.monotonic() > deadline_s:
            return f"the environment server did not answer in time: {found}"
        if found != said:
            said = found
            print(f"waiting for the environment server: {found}", file=sys.stderr)  # noqa: T201
        time.sleep(POLL_S)
    return None


def main() -> int:
    """Print what is wrong, if anything is."""
    check = {"environment": environment, "trainer": trainer, "wait": wait}[sys.argv[1]]
    said = check()
    if said is not None:
        print(said)  # noqa: T201
    return 0 if said is None else 1


if __name__ == "__main__":
    sys.exit(main())
