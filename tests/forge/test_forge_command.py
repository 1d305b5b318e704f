"""``palestra forge`` from a repository to tasks: real sandboxes, a real pytest in them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import forge_projects
import pytest
import pytest_asyncio
from serve_process import needs_engine, serving

from palestra.environment.agents.fake_model import ScriptedModelServer, block
from palestra.environment.sandboxes.engine_api import DOCKER, open_engine
from palestra.forge.scan import scan_command
from palestra.tasks.demonstrations import expert_steps
from palestra.tasks.rows import task_from_row

ROOTFS = os.environ.get("PALESTRA_TEST_ROOTFS", "")
NUM_TASKS = 4
NUM_PLAYED = 2
"""Tasks that an expert also solves in containers."""

pytestmark = [
    pytest.mark.skipif(
        not ROOTFS, reason="$PALESTRA_TEST_ROOTFS names no unpacked tree (tools/test_engines.sh)"
    ),
    pytest.mark.timeout(900),
    pytest.mark.slow,
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Folders of one forge; the image store is that of all."""

    folder: Path
    images: Path

    @property
    def env(self) -> dict[str, str]:
        """Nothing of it lies in the user's cache."""
        return {
            **os.environ,
            "PALESTRA_FORGE": str(self.folder / "work"),
            "PALESTRA_IMAGES": str(self.images),
            "PALESTRA_STATE": str(self.folder / "state"),
        }

    @property
    def output(self) -> Path:
        return self.folder / "tasks.jsonl"

    def command(self, *words: str | Path) -> list[str]:
        return [sys.executable, "-m", "palestra", *map(str, words)]

    def forge(self, *words: str | Path) -> list[str]:
        options = ("--output", self.output, "--base", ROOTFS, "--gold-runs", "1")
        return self.command("forge", *words, *options)

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self.env, cwd=self.folder, capture_output=True, text=True, check=False
        )


def rows_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["metadata"] for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return forge_projects.honest(tmp_path_factory.mktemp("projects") / "toylib")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, honest: Path, images: Path) -> Place:
    """Tasks of the honest project."""
    made = Place(folder=tmp_path_factory.mktemp("forge"), images=images)
    done = made.run(made.forge(honest, "--n", str(NUM_TASKS)))
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def rows(place: Place) -> list[dict[str, Any]]:
    return rows_in(place.output)


def test_as_many_tasks_as_were_asked_for_and_no_two_alike(rows: list[dict[str, Any]]) -> None:
    assert len(rows) == NUM_TASKS
    for field in ("instance_id", "setup_patch", "problem_statement", "base_commit"):
        assert len({row[field] for row in rows}) == NUM_TASKS, f"two tasks share their {field}"


def test_killed_and_begun_again_it_gives_the_same_tasks(
    tmp_path: Path, honest: Path, place: Place
) -> None:
    """With another number of bugs at once, and a SIGKILL in the middle."""
    other = Place(folder=tmp_path, images=place.images)
    command = other.forge(honest, "--n", str(NUM_TASKS), "--at-once", "3")
    journal = tmp_path / "work" / "journal"
    with subprocess.Popen(command, env=other.env, stderr=subprocess.PIPE) as running:
        until_s = time.monotonic() + 240
        while not any(journal.glob("*.jsonl")) and running.poll() is None:
            assert time.monotonic() < until_s, "no bug was tried within four minutes"
            time.sleep(0.1)
        os.kill(running.pid, signal.SIGKILL)
    assert not other.output.exists(), "half a file"
    done = other.run(command)
    assert done.returncode == 0, done.stderr
    assert other.output.read_bytes() == place.output.read_bytes()


def test_every_task_is_certified_from_scratch_and_by_what_the_forge_wrote(
    place: Place, tmp_path: Path
) -> None:
    fresh = place.command("certify", place.output, "--json", "--gold-runs", "1")
    for proofs in (tmp_path / "new.jsonl", place.folder / "tasks.certificates.jsonl"):
        done = place.run([*fresh, "--sandbox", "bubblewrap", "--out", str(proofs)])
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["statuses"] == {"certified": NUM_TASKS}


def test_the_gold_patch_solves_every_task(place: Place) -> None:
    options = ("--agent", "gold", "--sandbox", "bubblewrap", "--json")
    done = place.run(place.command("eval", place.output, *options))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["solve_rate"] == 1.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def played(place: Place, rows: list[dict[str, Any]]) -> list[Played]:
    """What became of the expert's work on each task in bubblewrap."""
    return await play(place, "bubblewrap", rows)


async def test_an_expert_solves_every_task_and_finds_the_answer_nowhere(
    played: list[Played],
) -> None:
    assert len(played) == NUM_TASKS
    for episode in played:
        assert episode.reward == 1.0, episode
        assert episode.findings == [], episode
        assert episode.num_files > 100, "the machine was not looked through"


async def test_in_a_container_the_expert_comes_to_the_same_verdicts(
    place: Place, rows: list[dict[str, Any]], played: list[Played]
) -> None:
    needs_engine("docker")
    done = place.run(place.command("images", "send", place.output, "--to", "docker"))
    assert done.returncode == 0, done.stderr
    try:
        contained = await play(place, "docker", rows[:NUM_PLAYED])
    finally:
        async with open_engine(DOCKER) as api:
            await api.remove_image(rows[0]["image"])
    for ours, theirs in zip(played[:NUM_PLAYED], contained, strict=True):
        assert theirs.reward == 1.0, theirs
        assert theirs.findings == [], theirs
        assert theirs.verdict == ours.verdict


def test_neither_statement_nor_visible_tests_tell_the_answer(
    rows: list[dict[str, Any]], honest: Path
) -> None:
    for row in rows:
        for line in _added(row["patch"]):
            assert line not in row["problem_statement"], row["instance_id"]
        for test in row["FAIL_TO_PASS"]:
            name = test.rpartition("::")[2].partition("[")[0]
            assert name not in row["problem_statement"], row["instance_id"]
            assert f"-def {name}(" in row["setup_patch"].replace("-    def", "-def"), test


def test_the_row_says_where_it_came_from(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        origin = row["forge"]
        assert (origin["project"], origin["licence"]) == ("toylib", "MIT")
        assert origin["mutation"]
        assert 1 <= row["difficulty"] <= 5
        for secret in (*origin["mutation"].values(), *origin["kinds"]):
            assert secret not in row["problem_statement"]


def test_a_hostile_project_harms_nothing_and_gives_no_wrong_task(
    tmp_path: Path, images: Path
) -> None:
    marker = tmp_path / "marker"
    project = forge_projects.hostile(tmp_path / "hostile", marker)
    place = Place(folder=tmp_path, images=images)
    passwords = Path("/etc/passwd").read_bytes()
    done = place.run(place.forge(project, "--n", "2"))
    assert not marker.exists(), "code of the project ran on the host"
    assert Path("/etc/passwd").read_bytes() == passwords
    assert "sleep 1000" not in _processes(), "a process of the project is left"
    if done.returncode != 0:
        assert "gives no tasks" in done.stderr, done.stderr
        return
    for row in rows_in(place.output):
        listed = [*row["FAIL_TO_PASS"], *row["PASS_TO_PASS"]]
        for test in ("test_needs_the_network", "test_flakes"):
            assert not any(test in one for one in listed), f"{test} is not stable"
    checked = place.run(
        place.command(
            *("certify", place.output, "--json", "--gold-runs", "1", "--sandbox", "bubblewrap"),
            *("--out", tmp_path / "again.jsonl"),
        )
    )
    assert set(json.loads(checked.stdout)["statuses"]) == {"certified"}


def test_a_project_whose_tests_hang_is_given_up_with_a_line(tmp_path: Path, images: Path) -> None:
    project = forge_projects.hanging(tmp_path / "hanging")
    place = Place(folder=tmp_path, images=images)
    done = place.run(place.forge(project, "--n", "2", "--suite-limit", "6"))
    assert done.returncode != 0
    assert "not through after 6 s" in done.stderr, done.stderr
    assert not place.output.exists()


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What came of an episode, and what the scan of its sandbox found."""

    reward: float
    verdict: Mapping[str, Any]
    findings: Sequence[str]
    num_files: int


async def play(place: Place, backend: str, rows: Sequence[Mapping[str, Any]]) -> list[Played]:
    """Let mini-swe-agent say what an expert would, on a server; first it scans the machine."""
    options = ("--agent", "mini", "--prompt", "swebench_backticks", "--images", str(place.images))
    found = []
    async with serving(place.folder, backend, *options) as server:
        for row in rows:
            commands = [scan_command(row), *(s.command for s in expert_steps(task_from_row(row)))]
            async with ScriptedModelServer(partial(saying, commands)) as model:
                given = {"responses_create_params": {"input": []}, "sglang_url": model.base_url}
                answer = (await server.http.post("/run", json={**row, **given})).json()
            assert answer["error"] is None, answer["error"]
            assert len(model.requests) == len(commands)
            (scanned,) = re.findall(
                r'{"findings": .*}', model.requests[1]["messages"][-1]["content"]
            )
            verdict = {
                name: value
                for name, value in answer["episode"]["verdict"].items()
                if name not in ("duration_s", "log")  # pytest says how long it took
            }
            found.append(Played(reward=answer["reward"], verdict=verdict, **json.loads(scanned)))
    return found


def saying(commands: Sequence[str], request: Mapping[str, Any]) -> str:
    turn = sum(message["role"] == "assistant" for message in request["messages"])
    return block(commands[turn])


def _added(patch: str) -> list[str]:
    """The lines that the fix brings back, as far as they say something."""
    lines = (line[1:].strip() for line in patch.splitlines() if line.startswith("+"))
    return [line for line in lines if len(line) > 14 and not line.startswith("++")]


def _processes() -> str:
    return subprocess.run(["ps", "ax", "-o", "args"], capture_output=True, text=True).stdout
