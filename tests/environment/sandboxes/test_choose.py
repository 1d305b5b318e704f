"""Which backend is taken, what is said of it, and what is said when there is none."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from palestra.config import SandboxSection
from palestra.environment.sandboxes.bwrap import find_bwrap
from palestra.environment.sandboxes.choose import (
    Choice,
    Rejection,
    choose_backend,
    first_that_works,
)
from palestra.environment.sandboxes.engine import EngineBackend
from palestra.environment.sandboxes.engine_api import EngineKind
from palestra.environment.sandboxes.fake import FakeSandboxBackend
from palestra.environment.sandboxes.local import LocalBackend
from palestra.errors import NoIsolation, SandboxUnavailable

REPOSITORY = Path(__file__).parent.parent.parent.parent
NOWHERE = {"DOCKER_HOST": "unix:///nowhere/d.sock", "CONTAINER_HOST": "unix:///nowhere/p.sock"}
TASKS = "katas:train?seed=0&n=2"


def engine(socket: Path) -> EngineBackend:
    kind = EngineKind(name="docker", variable="NO_SUCH", sockets=(str(socket),), hint="start it")
    return EngineBackend(kind, host_image="nothing")


def palestra_without_namespaces(
    *arguments: str, state: Path, **env: str
) -> subprocess.CompletedProcess[str]:
    """The command where user namespaces are refused and no engine runs."""
    bwrap = [str(find_bwrap().path), "--unshare-user", "--disable-userns", "--dev-bind", "/", "/"]
    return subprocess.run(
        [*bwrap, "--cap-drop", "ALL", sys.executable, "-m", "palestra", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **NOWHERE, "PALESTRA_STATE": str(state), **env},
        check=False,
    )


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    return errors[0]


async def test_auto_takes_bubblewrap_first(tmp_path: Path) -> None:
    choice = await choose_backend(SandboxSection(), state_dir=tmp_path)
    assert (choice.backend.name, choice.rejected) == ("bubblewrap", ())
    assert choice.describe() == "sandbox: bubblewrap"


async def test_local_is_taken_when_it_is_named_and_warns(tmp_path: Path) -> None:
    choice = await choose_backend(SandboxSection(backend="local"), state_dir=tmp_path)
    assert choice.backend.name == "local"
    assert choice.describe().startswith("warning: sandbox local isolates nothing")


async def test_why_the_earlier_ones_were_not_taken(tmp_path: Path) -> None:
    choice = await first_that_works([engine(tmp_path / "none"), FakeSandboxBackend()])
    assert choice.rejected == (Rejection(name="docker", reason="no docker engine is running"),)
    assert choice.describe() == "sandbox: fake (not docker: no docker engine is running)"


async def test_an_engine_that_never_answers_is_passed_over(tmp_path: Path) -> None:
    async def be_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    socket = tmp_path / "s"
    async with await asyncio.start_unix_server(be_silent, socket):
        backends = (engine(socket), FakeSandboxBackend())
        choice = await first_that_works(backends, timeout_s=0.3)
    assert "did not start a trial sandbox in 0.3 s" in choice.describe()


async def test_an_engine_that_is_remote_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://10.0.0.1:2375")
    with pytest.raises(SandboxUnavailable, match="only a Unix socket"):
        await choose_backend(SandboxSection(backend="docker"), state_dir=Path("/nowhere"))


async def test_none_works(tmp_path: Path) -> None:
    with pytest.raises(NoIsolation, match="docker: no docker engine is running"):
        await first_that_works([engine(tmp_path / "none")])


def test_describe_says_nothing_of_a_first_choice(tmp_path: Path) -> None:
    assert Choice(backend=FakeSandboxBackend()).describe() == "sandbox: fake"
    assert LocalBackend(state_dir=tmp_path).name == "local"


# --- as a user sees it --------------------------------------------------------


def test_eval_names_every_reason_and_the_command_that_goes_on(tmp_path: Path) -> None:
    typed = ["eval", TASKS, "--agent", "gold"]
    said = error_of(palestra_without_namespaces(*typed, state=tmp_path / "state"))
    for text in (
        "bubblewrap: user namespaces are refused",
        "docker: no docker engine is running; podman: no podman engine is running",
        f"→ {shlex.join(['palestra', *typed, '--sandbox', 'local'])} goes on without isolation",
        "run as you, on your files and your network",
    ):
        assert text in said, said
    done = palestra_without_namespaces(*typed, "--sandbox", "local", state=tmp_path / "state")
    assert done.returncode == 0, done.stderr
    assert "solved 100" in done.stdout or "solve rate 1.000" in done.stdout, done.stdout
    assert "warning: sandbox local isolates nothing" in done.stderr


@pytest.mark.timeout(120)
def test_the_server_of_a_run_tells_its_parent(tmp_path: Path) -> None:
    typed = ["train", str(REPOSITORY / "recipes/smoke.toml"), "--set", f"runs={tmp_path}/runs"]
    said = error_of(palestra_without_namespaces(*typed, state=tmp_path / "state"))
    assert "bubblewrap: user namespaces are refused" in said
    assert f"→ {shlex.join(['palestra', *typed])} --sandbox local goes on" in said
    said = error_of(
        palestra_without_namespaces(*typed, "--sandbox", "podman", state=tmp_path / "state")
    )
    assert said.startswith("error: no podman engine is running → start its service")
