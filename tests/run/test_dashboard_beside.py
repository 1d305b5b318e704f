"""The dashboard beside a command: one line whatever happens, and gone with the command."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from palestra.cli.viewer import dashboard_beside

PATIENCE_S = 60.0


def until(holds: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.05)


def test_it_says_its_address_and_ends_with_the_block(tmp_path: Path) -> None:
    said: list[str] = []
    with dashboard_beside(tmp_path, wanted=True, port=0, say=said.append, page="/runs/x"):
        until(lambda: bool(said), "it says nothing")
        (line,) = said
        assert line.startswith("dashboard: http://127.0.0.1:")
        assert line.endswith("/runs/x")
        url = line.removeprefix("dashboard: ").removesuffix("/runs/x")
        assert httpx.get(url, trust_env=False).status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)
    assert len(said) == 1


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    said: list[str] = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with dashboard_beside(tmp_path, wanted=True, port=port, say=said.append):
            until(lambda: bool(said), "it says nothing")
    (line,) = said
    assert line.startswith("no dashboard: ")
    assert "the port is taken" in line


def test_it_delays_nothing_and_is_off_by_an_option(tmp_path: Path) -> None:
    said: list[str] = []
    with dashboard_beside(tmp_path, wanted=False, say=said.append):
        pass
    # Left before it can have come up.
    with dashboard_beside(tmp_path, wanted=True, port=0, say=said.append):
        pass
    assert len(said) <= 1


def test_it_is_gone_when_its_parent_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from palestra.cli.viewer import dashboard_beside\n"
        "say = lambda text: print(text, flush=True)\n"
        "with dashboard_beside(Path(sys.argv[1]), wanted=True, port=0, say=say):\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().split()[-1]
        assert httpx.get(url, trust_env=False).status_code == 200
        parent.kill()

    def is_gone() -> bool:
        try:
            httpx.get(url, trust_env=False, timeout=1)
        except httpx.HTTPError:
            return True
        return False

    until(is_gone, "it outlives its parent")


@pytest.mark.parametrize(
    ("options", "code", "what"),
    [
        (["--host", "0.0.0.0"], 2, "--token"),
        (["--port", "70000"], 2, "65535"),
        (["--host", "no.such.host.invalid"], 2, "127.0.0.1 always works"),
    ],
)
def test_wrong_options_are_one_line(
    tmp_path: Path, options: list[str], code: int, what: str
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PALESTRA_TOKEN"}
    token = ["--token", "x"] if "invalid" in options[-1] else []
    done = subprocess.run(
        [sys.executable, "-m", "palestra", "view", str(tmp_path), *options, *token],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=environment,
        check=False,
    )
    assert done.returncode == code
    assert what in done.stderr
    assert "Traceback" not in done.stderr
