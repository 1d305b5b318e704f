"""Makes a run directory of any size without running anything: events, rollouts, recipe.

Rollouts are written by the run's own writer; numbers are drawn from a seed and shaped like
those of a run that learns.

    python tools/scripted_run.py RUNS [--name scripted] [--steps 200] [--groups 8]
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from palestra.learning.metrics import outcome_metrics, stage_metrics
from palestra.learning.rollouts.filters import DropReason, JudgedGroup
from palestra.learning.rollouts.store import RolloutStore
from palestra.recipe_files import parse_recipe
from palestra.records import (
    CommandRun,
    EpisodeResult,
    FinishReason,
    Group,
    Message,
    Outcome,
    Rollout,
    Segment,
    TestSplit,
    Timings,
    Trace,
    Turn,
    Verdict,
)
from palestra.run.directory import RunDirectory, create_run

BEGAN_S = 1_790_000_000.0
STEP_S = 60.0
COMMANDS = (
    "grep -rn 'def total' src | head",
    "sed -n '1,80p' src/ledger/total.py",
    "python -m pytest -q tests/test_total.py 2>&1 | tail -5",
    "sed -i 's/return a - b/return a + b/' src/ledger/total.py",
    "git diff",
)
OUTPUT = "src/ledger/total.py:12:def total(a, b):\nsrc/ledger/total.py:13:    return a - b\n"
PATCH = """diff --git a/src/ledger/total.py b/src/ledger/total.py
index 3f1aa02..9c2b771 100644
--- a/src/ledger/total.py
+++ b/src/ledger/total.py
@@ -10,5 +10,5 @@

 def total(a, b):
     \"\"\"What both come to.\"\"\"
-    return a - b
+    return a + b
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How large a run is.

    Attributes:
        name: of the run.
        steps: complete ones.
        groups: of a step.
        group_size: episodes of a group.
        turns: of an episode, at most.
        ids: sampled in a turn.
        seed: of all draws.
        stored: how many of the first steps have their rollouts on the disk; ``None``: all.
    """

    name: str = "scripted"
    steps: int = 200
    groups: int = 8
    group_size: int = 8
    turns: int = 6
    ids: int = 40
    seed: int = 0
    stored: int | None = None


def make_run(runs: Path, shape: Shape) -> RunDirectory:
    """Write a finished run below ``runs``."""
    recipe = parse_recipe(
        {
            "name": shape.name,
            "runs": str(runs),
            "seed": shape.seed,
            "tasks": {"heldout": "katas:heldout?seed=0&n=200&level=0"},
            "model": {"path": "demo", "max_context": 4096},
            "rollouts": {"groups_per_step": shape.groups, "group_size": shape.group_size},
            "training": {"steps": shape.steps},
        }
    )
    run, _ = create_run(recipe)
    store = RolloutStore(run.rollouts)
    with run.events.open("wb") as log:
        for event in _beginning():
            log.write(line(event))
        for step in range(1, shape.steps + 1):
            judged = judged_of(shape, step)
            if shape.stored is None or step <= shape.stored:
                store.write(step, judged, _ratios(judged))
            for event in step_events(step, judged):
                log.write(line(event))
    return run


def judged_of(shape: Shape, step: int) -> tuple[JudgedGroup, ...]:
    """The groups of a step."""
    return tuple(_judged(shape, step, number) for number in range(shape.groups))


def line(event: dict[str, Any]) -> bytes:
    """An event as the log holds it."""
    return orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE)


def step_events(step: int, judged: Sequence[JudgedGroup]) -> Iterator[dict[str, Any]]:
    """What a step leaves in the log."""
    ended_s = BEGAN_S + STEP_S * step
    rollouts = [rollout for group in judged for rollout in group.whole.rollouts]
    for number, rollout in enumerate(rollouts):
        yield _rollout_event(rollout, ended_s - STEP_S * 0.3 - 0.01 * (len(rollouts) - number))
    for group in judged:
        yield {
            "kind": "group",
            "time_s": ended_s,
            "step": step,
            "group_id": group.whole.group_id,
            "instance_id": group.whole.instance_id,
            "task_index": group.whole.task_index,
            "rewards": [rollout.reward for rollout in group.whole.rollouts],
            "oldest_version": step - 1,
            "kept": group.kept is not None,
            "drop_reason": group.reason,
        }
    yield {
        "kind": "step",
        "time_s": ended_s,
        "step": step,
        "version": step,
        "trained": True,
        "metrics": _metrics(step, judged),
    }
    if step % 10 == 0:
        yield _evaluation(step, ended_s + 1.0)


def _beginning() -> Iterator[dict[str, Any]]:
    facts = {
        "command": "palestra train scripted",
        "versions": ["python 3.11.7", "palestra 0.1.0"],
        "system": "Linux, x86_64",
        "processor": "made up",
        "num_cpus": 2,
        "memory_bytes": 25 << 30,
        "accelerators": [],
    }
    yield {"kind": "run.started", "time_s": BEGAN_S, "facts": facts}
    yield {
        "kind": "sandbox.chosen",
        "time_s": BEGAN_S,
        "backend": "bubblewrap",
        "description": "sandbox: bubblewrap",
    }
    yield {"kind": "loop.started", "time_s": BEGAN_S, "step": 0, "version": 0, "discarded": []}
    yield _evaluation(0, BEGAN_S + 1.0)


def _evaluation(step: int, time_s: float) -> dict[str, Any]:
    metrics = {}
    for mode, lead in (("sampled", 0.0), ("greedy", 0.05)):
        rate = min(0.95, 0.2 + lead + 0.6 * step / (step + 60))
        metrics |= {
            f"eval/{mode}/episodes": 200.0,
            f"eval/{mode}/solve_rate": rate,
            f"eval/{mode}/solve_rate_low": rate - 0.06,
            f"eval/{mode}/solve_rate_high": rate + 0.06,
        }
    return {"kind": "evaluation", "time_s": time_s, "step": step, "metrics": metrics}


def _rollout_event(rollout: Rollout, time_s: float) -> dict[str, Any]:
    episode = rollout.episode
    total_s = episode.timings.total_s or 0.0
    return {
        "kind": "rollout",
        "time_s": time_s,
        "rollout_id": rollout.rollout_id,
        "group_id": rollout.rollout_id.rpartition("-")[0],
        "instance_id": episode.instance_id,
        "began_s": time_s - total_s,
        "outcome": episode.outcome.value,
        "exit_status": episode.exit_status,
        "reward": rollout.reward,
        "num_turns": episode.num_turns,
        "versions": sorted(rollout.trace.policy_versions),
        "total_s": total_s,
        "timings": {
            "queue_s": episode.timings.queue_s,
            "start_s": episode.timings.start_s,
            "agent_s": episode.timings.agent_s,
            "model_s": episode.timings.model_s,
            "env_s": episode.timings.env_s,
            "eval_s": episode.timings.eval_s,
            "total_s": total_s,
        },
        "error": episode.error,
    }


def _judged(shape: Shape, step: int, number: int) -> JudgedGroup:
    index = (step - 1) * shape.groups + number
    draw = random.Random(f"{shape.seed}/{index}")
    task = f"ledger__total-{index % 120:04d}"
    skill = min(0.97, 0.15 + 0.7 * step / (step + 50)) * draw.choice((0.3, 1.0, 1.0, 1.1))
    group = Group(
        group_id=f"{shape.name}-{index}",
        instance_id=task,
        task_index=index,
        rollouts=tuple(
            _rollout(shape, step, f"{shape.name}-{index}-{n}", task, draw, skill)
            for n in range(shape.group_size)
        ),
    )
    rewards = {rollout.reward for rollout in group.rollouts}
    is_equal = len(rewards - {None}) < 2
    return JudgedGroup(
        whole=group,
        kept=None if is_equal else group,
        reason=DropReason.ALL_EQUAL if is_equal else None,
    )


def _rollout(
    shape: Shape, step: int, rollout_id: str, task: str, draw: random.Random, skill: float
) -> Rollout:
    outcome = Outcome.SOLVED if draw.random() < skill else Outcome.UNSOLVED
    if draw.random() < 0.06:
        outcome = draw.choice([Outcome.TRUNCATED, Outcome.MALFORMED, Outcome.INFRA_ERROR])
    turns = tuple(_turn(shape, step, n, draw) for n in range(draw.randint(2, shape.turns)))
    return Rollout(
        rollout_id=rollout_id,
        episode=_episode(rollout_id, task, outcome, turns, draw),
        trace=Trace(session_id=rollout_id, turns=turns),
    )


def _turn(shape: Shape, step: int, number: int, draw: random.Random) -> Turn:
    ids = tuple(draw.randrange(500) for _ in range(shape.ids))
    return Turn(
        index=number,
        parent=number - 1 if number else None,
        context_ids=tuple(draw.randrange(500) for _ in range(120 if number == 0 else 30)),
        segments=(
            Segment(
                ids=ids,
                logprobs=tuple(-draw.expovariate(4.0) for _ in ids),
                policy_version=step - 1,
            ),
        ),
        finish_reason=FinishReason.STOP,
        temperature=1.0,
        duration_s=draw.uniform(0.5, 3.0),
    )


def _episode(
    rollout_id: str,
    task: str,
    outcome: Outcome,
    turns: tuple[Turn, ...],
    draw: random.Random,
) -> EpisodeResult:
    said = [COMMANDS[n % len(COMMANDS)] for n in range(len(turns))]
    messages = [
        Message(role="system", content="Fix the bug with bash, one command in each answer."),
        Message(role="user", content="`total(1, 2)` returns -1, expected 3."),
    ]
    for command in said:
        block = f"Let me look.\n\n```mswea_bash_command\n{command}\n```"
        messages.append(Message(role="assistant", content=block))
        messages.append(Message(role="user", content=f"exit code 0\n{OUTPUT}"))
    failed = outcome is Outcome.INFRA_ERROR
    model_s = sum(turn.duration_s for turn in turns)
    env_s, eval_s = draw.uniform(0.1, 2.0), draw.uniform(0.5, 4.0)
    agent_s = model_s + env_s + 0.1
    return EpisodeResult(
        episode_id=rollout_id,
        instance_id=task,
        outcome=outcome,
        exit_status="SandboxDied" if failed else "Submitted",
        messages=tuple(messages),
        patch=None if failed else PATCH,
        submission=None,
        verdict=None if failed else _verdict(outcome is Outcome.SOLVED, eval_s),
        error="SandboxDied: the sandbox went away" if failed else None,
        num_turns=len(turns),
        num_tool_calls=len(turns),
        timings=Timings(
            queue_s=0.01,
            image_s=0.0,
            start_s=0.02,
            agent_s=agent_s,
            model_s=model_s,
            env_s=env_s,
            eval_s=None if failed else eval_s,
            total_s=agent_s + 0.05 + (0.0 if failed else eval_s),
        ),
        commands=tuple(
            CommandRun(command=c, began_s=float(n), duration_s=env_s / len(said), exit_code=0)
            for n, c in enumerate(said)
        ),
    )


def _ratios(judged: Sequence[JudgedGroup]) -> dict[str, list[float]]:
    """Of every id of the groups that were trained on, near to 1."""
    kept = [rollout for group in judged if group.kept for rollout in group.kept.rollouts]
    return {
        one.rollout_id: [
            2.0 ** random.Random(f"{one.rollout_id}/{n}").gauss(0.0, 0.1)
            for n in range(sum(len(turn.sampled_ids) for turn in one.trace.turns))
        ]
        for one in kept
    }


def _verdict(is_solved: bool, eval_s: float) -> Verdict:
    flips = tuple(f"tests/test_total.py::test_total_{n}" for n in range(3))
    holds = tuple(f"tests/test_total.py::test_other_{n}" for n in range(5))
    return Verdict(
        resolved=is_solved,
        patch_applied=True,
        fail_to_pass=TestSplit(
            success=flips if is_solved else (), failure=() if is_solved else flips
        ),
        pass_to_pass=TestSplit(success=holds, failure=()),
        statuses=dict.fromkeys(holds, "PASSED")
        | dict.fromkeys(flips, "PASSED" if is_solved else "FAILED"),
        log="8 tests\n",
        duration_s=eval_s,
    )


def _metrics(step: int, judged: Sequence[JudgedGroup]) -> dict[str, float]:
    rollouts = [rollout for group in judged for rollout in group.whole.rollouts]
    episodes = [rollout.episode for rollout in rollouts]
    kept = sum(group.kept is not None for group in judged)
    ids = sum(len(turn.sampled_ids) for rollout in rollouts for turn in rollout.trace.turns)
    draw = random.Random(step)
    return (
        outcome_metrics(episodes)
        | stage_metrics(episodes)
        | {
            "agent/turns_mean": sum(e.num_turns for e in episodes) / len(episodes),
            "rollout/episodes": float(len(rollouts)),
            "rollout/groups_kept": float(kept),
            "rollout/groups_dropped": float(len(judged) - kept),
            "rollout/dropped_all_equal": float(len(judged) - kept),
            "rollout/sampled_tokens_sum": float(ids),
            "rollout/sampled_tokens_mean": ids / len(rollouts),
            "rollout/wait_s": STEP_S * 0.7,
            "train/entropy": 0.6 * 0.99**step + 0.02 * draw.random(),
            "train/kl_loss": 0.0004 * step + 0.002 * draw.random(),
            "train/grad_norm": 0.4 + 0.2 * draw.random(),
            "train/mis_tis_mask_fraction_low": 0.002 * draw.random(),
            "train/mis_tis_mask_fraction_high": 0.002 * draw.random(),
            "train/mis_tis_weight_before_bound": 1 + 0.002 * (draw.random() - 0.5),
            "train/staleness_mean": draw.random(),
            "train/staleness_max": 1.0,
            "train/lr": 1e-6,
            "time/train_s": STEP_S * 0.27,
            "time/publish_s": STEP_S * 0.02,
            "time/step_s": STEP_S,
        }
    )


def main() -> None:
    """Make a run and print where it lies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--name", default="scripted")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--groups", type=int, default=8)
    given = parser.parse_args()
    shape = Shape(name=given.name, steps=given.steps, groups=given.groups)
    print(make_run(given.runs, shape).root)


if __name__ == "__main__":
    main()
