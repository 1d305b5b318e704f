"""Certificates: what runs come to, what they are bound to, and going on after a kill."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from palestra.cli.main import app
from palestra.environment.grading.certificates import (
    Certificate,
    CertificateFile,
    CertificateStatus,
    Conditions,
    GradedRun,
    certificate,
    graded,
)
from palestra.environment.grading.protocol import Grader
from palestra.environment.grading.verdict import judge
from palestra.environment.sandboxes.protocol import SandboxLimits
from palestra.errors import GradingError, HostError
from palestra.records import HOST_IMAGE, Task, Verdict
from palestra.run.certify import Plan, Uncertain, certify
from palestra.tasks.katas import KataSpec, generate_rows
from palestra.tasks.swegym import END_MARKER, START_MARKER

CONDITIONS = Conditions.of("bubblewrap", SandboxLimits(), eval_timeout_s=60)


def task_of(name: str) -> Task:
    return Task(
        instance_id=name,
        repo="toy/toy",
        base_commit="HEAD",
        problem_statement="broken",
        image=HOST_IMAGE,
        fail_to_pass=("flips",),
        pass_to_pass=("holds",),
        gold_patch=f"gold of {name}",
        test_patch="",
        eval_script="",
        log_parser="",
    )


class TellingGrader:
    """Fails the tests that it is told, one list for each grading; the last one goes on."""

    def __init__(self, noop: Sequence[str], *gold: Sequence[str] | Exception) -> None:
        self.noop = noop
        self.gold = list(gold)
        self.graded: list[tuple[str, str]] = []

    async def grade(self, task: Task, patch: str) -> Verdict:
        self.graded.append((task.instance_id, patch))
        number = sum(seen == (task.instance_id, patch) for seen in self.graded) - 1
        failed = self.gold[min(number, len(self.gold) - 1)] if patch else self.noop
        if isinstance(failed, Exception):
            raise failed
        passed = {test: "PASSED" for test in ("flips", "holds") if test not in failed}
        return judge(task, passed, finished=True, log="", duration_s=0.5)


class Bench:
    """Grades with a grader alone, on images that are what they are called."""

    def __init__(self, grader: Grader, identity: str = "sha256:1") -> None:
        self.grader = grader
        self.identity = identity

    async def identify(self, task: Task) -> str:
        return self.identity

    async def grade(self, task: Task, name: str, patch: str) -> GradedRun:
        verdict = await self.grader.grade(task, patch)
        return graded(name, verdict, peak_memory_bytes=1000)


async def certified(
    grader: TellingGrader,
    path: Path,
    *,
    plan: Plan | None = None,
    tasks: Sequence[Task] = (),
    identity: str = "sha256:1",
) -> list[Certificate | Uncertain]:
    seen: list[Certificate | Uncertain] = []
    await certify(
        Bench(grader, identity),
        tasks or [task_of("one")],
        CertificateFile(path=path),
        plan or Plan(conditions=CONDITIONS),
        on_task=seen.append,
    )
    return seen


@pytest.mark.parametrize(
    ("noop", "gold", "status", "flaky"),
    [
        (["flips"], [[]], "certified", ()),
        ([], [[]], "noop_passes", ()),
        (["flips"], [["flips"]], "gold_fails", ()),
        (["flips"], [["flips", "holds"], ["flips"]], "gold_fails", ("holds",)),
        (["flips"], [[], ["holds"], []], "flaky", ("holds",)),
        (["flips", "holds"], [[]], "flaky", ("holds",)),
    ],
)
async def test_what_runs_come_to(
    tmp_path: Path,
    noop: list[str],
    gold: list[list[str]],
    status: str,
    flaky: tuple[str, ...],
) -> None:
    (one,) = await certified(TellingGrader(noop, *gold), tmp_path / "c.jsonl")
    assert isinstance(one, Certificate)
    assert (one.image_identity, one.peak_memory_bytes) == ("sha256:1", 1000)
    assert (one.status, one.flaky_tests) == (status, flaky)
    assert [run.patch for run in one.runs] == ["noop", "gold", "gold", "gold"]
    assert list(CertificateFile(path=tmp_path / "c.jsonl").read()) == [one]


async def test_a_slow_task_is_not_fit(tmp_path: Path) -> None:
    plan = Plan(conditions=CONDITIONS, max_s=0.4)
    (one,) = await certified(TellingGrader(["flips"], []), tmp_path / "c.jsonl", plan=plan)
    assert isinstance(one, Certificate)
    assert one.status is CertificateStatus.TOO_SLOW


async def test_trouble_gives_no_certificate_and_is_tried_anew(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    (one,) = await certified(TellingGrader(["flips"], [], GradingError("no python")), path)
    assert one == Uncertain(instance_id="one", error="GradingError: no python")
    assert not path.exists()
    (again,) = await certified(TellingGrader(["flips"], []), path)
    assert isinstance(again, Certificate)


async def test_what_is_known_is_not_graded_again(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    tasks = [task_of("one"), task_of("two")]
    await certified(TellingGrader(["flips"], []), path, tasks=tasks[:1])
    grader = TellingGrader(["flips"], [])
    seen = await certified(grader, path, tasks=tasks)
    assert [one.instance_id for one in seen] == ["one", "two"]
    assert {name for name, _ in grader.graded} == {"two"}


@pytest.mark.parametrize(
    ("task", "plan"),
    [
        (dataclasses.replace(task_of("one"), base_commit="other"), Plan(conditions=CONDITIONS)),
        (task_of("one"), Plan(conditions=dataclasses.replace(CONDITIONS, grader=0))),
        (task_of("one"), Plan(conditions=dataclasses.replace(CONDITIONS, backend="docker"))),
        (task_of("one"), Plan(conditions=dataclasses.replace(CONDITIONS, num_pids=9))),
        (task_of("one"), Plan(conditions=CONDITIONS, gold_runs=4)),
        (task_of("one"), Plan(conditions=CONDITIONS, max_s=9)),
    ],
)
async def test_a_certificate_is_bound_to_row_and_conditions(
    tmp_path: Path, task: Task, plan: Plan
) -> None:
    path = tmp_path / "c.jsonl"
    await certified(TellingGrader(["flips"], []), path)
    grader = TellingGrader(["flips"], [])
    await certified(grader, path, tasks=[task], plan=plan)
    assert grader.graded, "it counted although something else is asked for"


async def test_a_certificate_is_bound_to_what_the_image_is_made_of(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    await certified(TellingGrader(["flips"], []), path)
    grader = TellingGrader(["flips"], [])
    await certified(grader, path, identity="sha256:2")
    assert grader.graded


def test_a_line_that_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    runs = [
        GradedRun(patch=patch, resolved=patch == "gold", duration_s=1.0, failed=())
        for patch in ("noop", "gold")
    ]
    one, two = (
        certificate(task_of(name), CONDITIONS, runs, image_identity="host")
        for name in ("one", "two")
    )
    file = CertificateFile(path=tmp_path / "c.jsonl")
    file.append([one, two])
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[:-30])
    assert list(file.read()) == [one]
    file.append([two])
    assert list(file.read()) == [one, two]


def test_a_certificate_needs_both_patches() -> None:
    run = GradedRun(patch="gold", resolved=True, duration_s=1.0, failed=())
    with pytest.raises(ValueError, match="noop"):
        certificate(task_of("one"), CONDITIONS, [run], image_identity="host")


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="certificates"):
        CertificateFile(path=tmp_path / "missing" / "c.jsonl").append([])


def test_killed_and_started_again_it_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    command = [sys.executable, "-m", "palestra", "certify", "katas:heldout?seed=1&n=40&levels=0-4"]
    command += ["--out", str(path), "--sandbox", "bubblewrap", "--concurrency", "2", "--json"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline_s = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < 5:
        assert first.poll() is None, first.stderr and first.stderr.read()
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    num_before = path.read_bytes().count(b"\n")
    assert num_before < 40, "killed too late to show anything"
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout)["statuses"] == {"certified": 40}
    names = [one.instance_id for one in CertificateFile(path=path).read()]
    assert len(names) == len(set(names)) == 40


def test_a_gold_patch_whose_run_was_not_signed_says_so(tmp_path: Path) -> None:
    [row] = generate_rows(KataSpec(split="train", num_tasks=1, levels=(0,)))
    flips, holds = (
        "\n".join(f"echo PASSED {name}" for name in row[key])
        for key in ("FAIL_TO_PASS", "PASS_TO_PASS")
    )
    script = f"""\
echo '{START_MARKER}'
{holds}
[ -z "$(git diff)" ] || {{
{flips}
}}
echo '{END_MARKER}'
"""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**row, "eval_script": script, "log_parser": "parse_log_pytest"}))
    out = tmp_path / "certificates.jsonl"
    arguments = ["certify", str(path), "--out", str(out), "--gold-runs", "1"]
    done = CliRunner().invoke(app, arguments)
    assert "gold fails" in done.output
    assert "grading.signed" in done.output, done.output
    done = CliRunner().invoke(app, [*arguments, "--set", "grading.signed=false"])
    assert "certified          1" in done.output, done.output
