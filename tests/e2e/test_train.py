"""The whole loop as a user runs it: the command line, the shipped recipe, a real kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from palestra.events import read_events
from palestra.learning.evaluations import EvaluationStore
from palestra.learning.rollouts.store import RolloutStore

REPOSITORY = Path(__file__).parent.parent.parent
SMOKE = REPOSITORY / "recipes" / "smoke.toml"

pytestmark = pytest.mark.timeout(300)


# What is killed and resumed need not learn: fewer supervised steps, and every group counts.
SHORT = {
    "warmstart.steps": "20",
    "warmstart.tasks": "katas:train?seed=1&n=16&level=0",
    "tasks.heldout": "katas:heldout?seed=0&n=2&level=0",
    "rollouts.drop_equal_groups": "false",
}


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "palestra", *map(str, arguments)]


def short_run(runs: Path) -> list[str]:
    overrides = {"runs": str(runs), **SHORT}
    return command("train", SMOKE, *(f"--set={key}={value}" for key, value in overrides.items()))


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "state"
    monkeypatch.setenv("PALESTRA_STATE", str(folder))
    return folder


def descendants_with(marker: str) -> Iterator[str]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if marker in line and int(entry.name) != os.getpid():
                yield f"{entry.name}: {line[:200]}"


def leases(state: Path) -> list[str]:
    # Not rglob, which trips over folders that a reaper removes meanwhile.
    paths = [os.path.join(at, name) for at, _, names in os.walk(state) for name in names]  # noqa: PTH118
    return [path for path in paths if path.endswith(".json") and "lease" in path]


def nothing_left(state: Path, run: Path) -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        processes = [*descendants_with(str(state)), *descendants_with(str(run))]
        live = leases(state)
        if not processes and not live:
            break
        time.sleep(0.1)
    assert not processes, processes
    assert not live, live
    assert str(state) not in Path("/proc/self/mounts").read_text()


def trained_ids(run: Path) -> list[str]:
    store = RolloutStore(run / "rollouts")
    return [s.rollout.rollout_id for step in store.steps() for s in store.read(step) if s.trained]


def test_three_steps_of_the_smoke_recipe(tmp_path: Path, state: Path) -> None:
    result = subprocess.run(
        command("train", SMOKE, "--set", f"runs={tmp_path}"),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    run = tmp_path / "smoke"
    steps = [event.fields for event in read_events(run / "events.jsonl") if event.kind == "step"]
    assert [step["step"] for step in steps] == [1, 2, 3]
    for step in steps:
        assert abs(step["metrics"]["train/mis_tis_weight_before_bound"] - 1) < 1e-4, (
            "on-policy ratios are 1"
        )

    store = RolloutStore(run / "rollouts")
    versions = [
        {v for stored in store.read(step) for v in stored.rollout.trace.policy_versions}
        for step in store.steps()
    ]
    assert versions == [{0}, {1}, {2}], "each step was sampled by the weights before it"
    ids = trained_ids(run)
    assert len(ids) == len(set(ids)), "a rollout was trained twice"
    evaluations = EvaluationStore(run / "evaluations").read_all()
    assert [(e.plan.step, e.plan.version, e.plan.mode) for e in evaluations] == [
        (0, 0, "sampled"),
        (0, 0, "greedy"),
        (3, 3, "sampled"),
        (3, 3, "greedy"),
    ]
    for evaluation in evaluations:
        assert len(evaluation.episodes) == 16
        assert all(e.rollout.episode.messages for e in evaluation.episodes)
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "3 steps" in report
    assert "The same task before and after" in report
    for said in (
        "sampled ",
        "greedy ",
        " → ",
        "report.html",
        "checkpoints/3/model",
        "palestra eval",
    ):
        assert said in result.stderr, f"the summary does not say {said!r}"

    from transformers import AutoModelForCausalLM, AutoTokenizer

    last = run / "checkpoints" / "3" / "model"
    trained = AutoModelForCausalLM.from_pretrained(last).state_dict()
    before = AutoModelForCausalLM.from_pretrained(run / "checkpoints" / "2" / "model")
    changed = [k for k, v in before.state_dict().items() if not v.equal(trained[k])]
    assert changed, "the weights did not change"
    assert AutoTokenizer.from_pretrained(last).encode("<|im_start|>")
    nothing_left(state, run)


@pytest.mark.parametrize("after_events", [2, 9])
def test_kill_9_and_resume(tmp_path: Path, state: Path, after_events: int) -> None:
    run = tmp_path / "smoke"
    process = subprocess.Popen(
        short_run(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "events.jsonl").exists():
            kinds = [e.kind for e in read_events(run / "events.jsonl")]
            # somewhere inside a step: after so many rollouts of the run
            if kinds.count("rollout") >= after_events * 4:
                break
        time.sleep(0.05)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    nothing_left(state, run)
    store = EvaluationStore(run / "evaluations")
    before = [store.path(0, mode).stat().st_mtime_ns for mode in ("sampled", "greedy")]

    resumed = subprocess.run(
        command("train", "--resume", run), capture_output=True, text=True, timeout=200, check=False
    )
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert (run / "checkpoints" / "3" / "model" / "model.safetensors").exists()
    ids = trained_ids(run)
    assert len(ids) == len(set(ids)), "a rollout was trained twice"
    assert RolloutStore(run / "rollouts").steps() == [1, 2, 3]
    assert [(e.plan.step, e.plan.mode) for e in store.read_all()] == [
        (0, "sampled"),
        (0, "greedy"),
        (3, "sampled"),
        (3, "greedy"),
    ]
    after = [store.path(0, mode).stat().st_mtime_ns for mode in ("sampled", "greedy")]
    assert after == before, "the evaluation before training was done again"
    assert resumed.stderr.count(" → ") >= 2, "the summary knows what the killed process measured"
    assert "Resumed" in (run / "report.html").read_text(encoding="utf-8")
    nothing_left(state, run)


def test_ctrl_c_ends_cleanly_and_resume_finishes(tmp_path: Path, state: Path) -> None:
    run = tmp_path / "smoke"
    process = subprocess.Popen(
        short_run(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "events.jsonl").exists() and any(
            e.kind == "step" for e in read_events(run / "events.jsonl")
        ):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors, errors
    assert "--resume" in errors
    assert "not complete" in (run / "report.html").read_text(encoding="utf-8")
    nothing_left(state, run)
    resumed = subprocess.run(command("train", "--resume", run), capture_output=True, check=False)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
