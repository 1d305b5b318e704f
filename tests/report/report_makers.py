"""Run directories made by the real writers, with numbers like those of a real run."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

from palestra.config import EvaluationMode, Recipe
from palestra.events import EventLog
from palestra.learning.evaluations import (
    EvaluatedEpisode,
    Evaluation,
    EvaluationPlan,
    EvaluationStore,
)
from palestra.learning.metrics_table import MetricsTable
from palestra.recipe_files import parse_recipe
from palestra.records import (
    EpisodeResult,
    Message,
    Outcome,
    Rollout,
    TestSplit,
    Timings,
    Trace,
    Verdict,
)
from palestra.run.directory import RunDirectory, create_run
from palestra.run.facts import gather_facts

STATEMENT = (
    "`extended(10, 11)` in calc.py returns 1, expected 441: The square of price plus height."
)
PATCH = """diff --git a/calc.py b/calc.py
index 3f1..9c2 100644
--- a/calc.py
+++ b/calc.py
@@ -1,3 +1,3 @@
 def extended(price, height):
     \"\"\"The square of price plus height.\"\"\"
-    return pow(price - height, 2)
+    return pow(price {sign} height, 2)
"""


def make_recipe(runs: Path, **sections: object) -> Recipe:
    return parse_recipe(
        {
            "name": "demo",
            "runs": str(runs),
            "seed": 1,
            "tasks": {"heldout": "katas:heldout?seed=0&n=200&level=0"},
            "agent": {"prompt": "kata", "step_limit": 5},
            "model": {"path": "demo", "max_context": 1024},
            "sampling": {"temperature": 0.8, "max_new_tokens": 64},
            "training": {"steps": 86},
        }
        | sections
    )


def make_messages(command: str) -> tuple[Message, ...]:
    def block(text: str) -> str:
        return f"```mswea_bash_command\n{text}\n```"

    return (
        Message(role="system", content="Fix the bug with bash."),
        Message(role="user", content=STATEMENT),
        Message(role="assistant", content=block("grep -n -A3 'def extended' calc.py")),
        Message(
            role="user",
            content="exit code 0\n1:def extended(price, height):\n"
            '2-    """The square of price plus height."""\n'
            "3-    return pow(price - height, 2)\n",
        ),
        Message(role="assistant", content=block(command)),
        Message(role="user", content="exit code 0\n"),
        Message(role="assistant", content=block("echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT")),
    )


def make_episode(
    instance_id: str,
    outcome: Outcome,
    *,
    messages: tuple[Message, ...] | None = None,
    patch: str | None = None,
) -> EpisodeResult:
    is_solved = outcome is Outcome.SOLVED
    sign = "+" if is_solved else "*"
    tests = tuple(f"tests/test_calc.py::test_extended_{n}" for n in range(3))
    graded = outcome in (Outcome.SOLVED, Outcome.UNSOLVED, Outcome.TRUNCATED)
    return EpisodeResult(
        episode_id=f"e-{instance_id}",
        instance_id=instance_id,
        outcome=outcome,
        exit_status="Submitted" if graded else "LimitsExceeded",
        messages=messages
        if messages is not None
        else make_messages(f"sed -i '3s/ - / {sign} /' calc.py"),
        patch=(patch or PATCH.replace("{sign}", sign)) if graded else None,
        submission="",
        verdict=Verdict(
            resolved=is_solved,
            patch_applied=True,
            fail_to_pass=TestSplit(
                success=tests[:2] if is_solved else (), failure=() if is_solved else tests[:2]
            ),
            pass_to_pass=TestSplit(success=tests[2:], failure=()),
            statuses={
                tests[0]: "PASSED" if is_solved else "FAILED",
                tests[1]: "PASSED" if is_solved else "FAILED",
                tests[2]: "PASSED",
            },
            log="",
            duration_s=0.4,
        )
        if graded
        else None,
        error=None,
        num_turns=3,
        num_tool_calls=3,
        timings=Timings(start_s=0.02, model_s=0.6, env_s=0.05, eval_s=0.3, total_s=1.0),
    )


def make_evaluation(
    episodes: Sequence[EpisodeResult],
    *,
    step: int,
    mode: EvaluationMode,
    kinds: Sequence[str] = ("square_plus", "clamp", "count_if", "last_word"),
) -> Evaluation:
    return Evaluation(
        plan=EvaluationPlan(
            step=step,
            version=step,
            mode=mode,
            temperature=0.8 if mode == "sampled" else 0.0,
            attempts=1,
            tasks="digest",
        ),
        duration_s=14.2,
        episodes=tuple(
            EvaluatedEpisode(
                attempt=0,
                statement=STATEMENT,
                kind=kinds[number % len(kinds)],
                rollout=Rollout(
                    rollout_id=f"eval-{step}-{mode}-{number}",
                    episode=episode,
                    trace=Trace(session_id="s", turns=()),
                ),
            )
            for number, episode in enumerate(episodes)
        ),
    )


def make_episodes(
    rate: float, *, count: int = 200, seed: int = 0, malformed: float = 0.08
) -> list[EpisodeResult]:
    draw = random.Random(seed)
    episodes = []
    for number in range(count):
        roll = draw.random()
        outcome = Outcome.SOLVED if roll < rate else Outcome.UNSOLVED
        if roll > 1 - malformed:
            outcome = Outcome.MALFORMED
        elif roll > 1 - 1.5 * malformed:
            outcome = Outcome.TRUNCATED
        episodes.append(make_episode(f"kata-heldout-s0-l0-{number:06d}", outcome))
    return episodes


def step_metrics(step: int, steps: int, draw: random.Random) -> dict[str, float]:
    share = step / steps
    rate = min(0.95, max(0.0, 0.29 + 0.3 * share + draw.gauss(0, 0.05)))
    malformed = max(0.0, 0.06 * (1 - share) + draw.gauss(0, 0.01))
    truncated = max(0.0, 0.03 + draw.gauss(0, 0.01))
    kept = draw.randint(4, 8)
    return {
        "outcome/solved": rate,
        "outcome/unsolved": 1 - rate - malformed - truncated,
        "outcome/truncated": truncated,
        "outcome/malformed": malformed,
        "outcome/tampered": 0.0,
        "outcome/infra_error": 0.0,
        "outcome/flaky": 0.0,
        "reward/mean": rate,
        "solve_rate": rate,
        "agent/turns_mean": 3 + 0.2 * draw.random(),
        "rollout/episodes": 80.0,
        "rollout/groups_kept": float(kept),
        "rollout/groups_dropped": float(10 - kept),
        "rollout/dropped_all_equal": float(10 - kept),
        "rollout/wait_s": 2.2 + 0.3 * draw.random(),
        "rollout/sampled_tokens_mean": 88 + 10 * draw.random() - 12 * share,
        "rollout/sampled_tokens_sum": 7000.0,
        "time/episodes_start_s": 1.6,
        "time/episodes_model_s": 48.0,
        "time/episodes_commands_s": 4.1,
        "time/episodes_grading_s": 24.0,
        "time/episodes_other_s": 6.0,
        "train/entropy": 0.32 * math.exp(-1.2 * share) + draw.gauss(0, 0.012),
        "train/kl_loss": 0.02 * share + abs(draw.gauss(0, 0.001)),
        "train/grad_norm": abs(0.4 + 0.3 * share + draw.gauss(0, 0.12)),
        "train/mis_tis_weight_before_bound": 1 + draw.gauss(0, 2e-6),
        "train/mis_tis_mask_fraction_low": 0.0,
        "train/mis_tis_mask_fraction_high": 0.0,
        "time/train_s": 0.8 + 0.1 * draw.random(),
        "time/publish_s": 0.06,
        "time/step_s": 3.1 + 0.3 * draw.random(),
    }


def make_run(
    runs: Path,
    *,
    steps: int = 86,
    evaluations: Sequence[Evaluation] | None = None,
    **sections: object,
) -> RunDirectory:
    """A run of so many steps; without ``evaluations``, 200 tasks before and after."""
    run, recipe = create_run(make_recipe(runs, **sections))
    with EventLog(run.events) as events:
        facts = gather_facts(["demo", "--set", "seed=1", "--set=environment.token=hunter2"])
        events.emit("run.started", facts=facts)
        events.emit("loop.started", step=0)
        events.emit("step", step=steps)
    draw = random.Random(7)
    table = MetricsTable(run.metrics)
    for step in range(1, steps + 1):
        table.append(step, step_metrics(step, steps, draw))
    store = EvaluationStore(run.evaluations)
    if evaluations is None:
        evaluations = [
            make_evaluation(make_episodes(rate, seed=seed), step=step, mode=mode)
            for step, mode, rate, seed in (
                (0, "sampled", 0.29, 0),
                (0, "greedy", 0.33, 1),
                (steps, "sampled", 0.58, 2),
                (steps, "greedy", 0.64, 3),
            )
        ]
    for evaluation in evaluations:
        store.write(evaluation)
    if steps:
        (run.checkpoints / str(steps) / "model").mkdir(parents=True)
    assert recipe.name
    return run
