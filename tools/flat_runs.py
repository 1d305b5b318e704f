"""Make real runs flat on purpose, in four ways, and see whether "why flat" says so.

    python tools/flat_runs.py [--keep DIR]

Four short runs of ``palestra train`` on katas: some five minutes on two cores. Ends with 1
when a verdict is wrong.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from palestra.dashboard.flat_verdict import Cause
from palestra.run.directory import RunDirectory
from palestra.run.why import explain

SHORT = ("training.steps=4", "tasks.heldout=katas:heldout?seed=0&n=2&level=0")
DEMO = ("training.kl_coef=0", "rollouts.groups_per_step=4", *SHORT)
WAYS = {
    # A policy warmed up on one-token bugs, on bugs of a caller of a caller.
    Cause.TOO_HARD: ("smoke", ("tasks.train=katas:train?seed=0&n=64&level=4", *SHORT)),
    Cause.NOT_MOVING: ("demo", ("training.lr=1e-30", *DEMO)),
    Cause.UNRELATED: ("demo", ("training.shuffle_rewards=true", *DEMO)),
    # No token is five times as likely in the trainer as in the engine.
    Cause.LOST: ("demo", ("training.correction.low=5", "training.correction.high=9", *DEMO)),
}


def main() -> int:
    """Run them all; 0 when every verdict was right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="Keep the runs in this folder.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="palestra-flat-") as temporary:
        runs = options.keep or Path(temporary)
        missed = [cause for cause in WAYS if not _is_named(runs, cause)]
    print(f"{len(WAYS) - len(missed)} of {len(WAYS)} named")
    return bool(missed)


def _is_named(runs: Path, cause: Cause) -> bool:
    recipe, overrides = WAYS[cause]
    overrides = (f"runs={runs}", f"name={cause.value}", *overrides)
    subprocess.run(
        [sys.executable, "-m", "palestra", "train", recipe, *(f"--set={o}" for o in overrides)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=900,
    )
    report = explain(RunDirectory(runs / cause.value)).flat
    print(f"{cause.value:>10}: {report.verdict}", flush=True)
    return report.findings[0].cause is cause


if __name__ == "__main__":
    sys.exit(main())
