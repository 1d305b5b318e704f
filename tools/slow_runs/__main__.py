"""Delay each stage of a real run in turn and see whether "why slow" names it.

    PYTHONPATH=tools python -m slow_runs [--delay 2] [--only STAGE …]

Eight runs of two steps with the demo policy on katas, in real sandboxes under real tests:
some two minutes on two cores. Ends with 1 when a stage is not named.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

from palestra.config import Recipe
from palestra.dashboard.slow import SlowReport
from palestra.recipe_files import load_recipe
from palestra.run.recipes import find_recipe
from slow_runs.compose import slow_run
from slow_runs.delays import Delays

OVERRIDES = (
    "environment.concurrency=4",
    "environment.reuse_verdicts=false",
    "rollouts.groups_per_step=2",
    "rollouts.group_size=4",
    "rollouts.max_off_policy_steps=0",
    "rollouts.drop_equal_groups=false",
    "training.steps=2",
    "training.kl_coef=0",
)
"""Eight episodes a step, four at once: what an episode waits for, the step waits for twice."""


def main() -> int:
    """Run them all; 0 when every stage was named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay", type=float, default=2.0, help="Seconds; default 2.")
    parser.add_argument("--only", nargs="*", help="These stages alone.")
    options = parser.parse_args()
    recipe = load_recipe(find_recipe(Path("demo")), list(OVERRIDES))
    stages = options.only or [field.name for field in fields(Delays)]
    missed = [stage for stage in stages if not _is_named(recipe, stage, options.delay)]
    print(
        f"{len(stages) - len(missed)} of {len(stages)} named" + (f"; not {missed}" * bool(missed))
    )
    return bool(missed)


def _is_named(recipe: Recipe, stage: str, delay_s: float) -> bool:
    with tempfile.TemporaryDirectory(prefix="palestra-slow-") as folder:
        report = asyncio.run(slow_run(recipe, Path(folder), Delays(**{stage: delay_s})))
    found = report.stages[0].stage.value
    print(f"{stage:>8} + {delay_s:g} s: {_words(report)}")
    return found == stage


def _words(report: SlowReport) -> str:
    total = sum(time.seconds for time in report.stages)
    gap = abs(total - sum(report.steps[i].wall_s for i in range(len(report.steps))))
    parts = ", ".join(f"{t.stage.value} {t.seconds:.2f} s" for t in report.stages[:4])
    return f"{report.wall_s:.2f} s on the clock, unaccounted {gap:.1e} s: {parts}"


if __name__ == "__main__":
    sys.exit(main())
