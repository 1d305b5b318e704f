"""The demo as a user runs it, cut short: the shipped policy, the shipped recipe, a report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from demo_policy.measure import changes_one_span

from palestra.learning.evaluations import EvaluationStore
from palestra.records import Outcome
from palestra.run.policy import find_model

pytestmark = pytest.mark.timeout(300)

SHORT = {
    "training.steps": "2",
    "rollouts.groups_per_step": "2",
    "rollouts.group_size": "4",
    "tasks.heldout": "katas:heldout?seed=0&n=12&level=0",
}


def test_the_demo_policy_is_a_plain_folder_of_a_few_megabytes() -> None:
    folder = find_model("demo")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert "not" in (folder / "README.md").read_text()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5 << 20


def test_the_demo_runs_anywhere_and_its_policy_works_fluently(tmp_path: Path) -> None:
    overrides = [f"--set={key}={value}" for key, value in SHORT.items()]
    done = subprocess.run(
        [sys.executable, "-m", "palestra", "demo", *overrides],
        cwd=tmp_path,
        env={**os.environ, "PALESTRA_STATE": str(tmp_path / "state")},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    run = tmp_path / "runs" / "demo"
    assert (run / "report.html").stat().st_size > 10_000
    checkpoint = Path(done.stdout.strip())
    assert (checkpoint / "model.safetensors").is_file()
    assert "Held-out tasks, share solved" in done.stderr
    before = [e for e in EvaluationStore(run / "evaluations").read_all() if e.plan.step == 0]
    assert {e.plan.mode for e in before} == {"sampled", "greedy"}
    episodes = [item.rollout.episode for e in before for item in e.episodes]
    assert len(episodes) == 24
    fluent = [
        e.outcome in (Outcome.SOLVED, Outcome.UNSOLVED) and changes_one_span(e.patch or "")
        for e in episodes
    ]
    assert sum(fluent) >= 18, "the shipped policy no longer edits as it was made to"
