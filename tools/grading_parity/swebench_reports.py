"""What the swebench harness itself says about patches; runs in an environment that has swebench.

    python swebench_reports.py ROWS.jsonl PATCHES.jsonl --out REPORTS.jsonl

For each line of PATCHES.jsonl (``instance_id``, ``variant``, ``patch``) it calls the harness's own
``run_instance`` on docker, as ``swebench.harness.run_evaluation`` does for each prediction, and
writes its report, the status of every test that its parser saw, and where the log is. A patch that
is empty runs without one (``skip_patch``), which the command line of the harness leaves out.
The harness keeps its logs below the present folder and does not run again what has a report there.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
from swebench.harness.constants import LOG_TEST_OUTPUT, RUN_EVALUATION_LOG_DIR
from swebench.harness.grading import get_logs_eval
from swebench.harness.run_evaluation import run_instance
from swebench.harness.utils import make_test_spec


def main() -> None:
    """Run the harness on every patch and write what it says, line by line."""
    options = _options()
    rows = {row["instance_id"]: row for row in _lines(options.rows)}
    client = docker.from_env(timeout=options.timeout + 60)
    with options.out.open("w", encoding="utf-8") as out:
        for asked in _lines(options.patches):
            row = rows[asked["instance_id"]]
            line = report(row, asked, client, run_id=options.run_id, timeout_s=options.timeout)
            out.write(json.dumps(line) + "\n")
            out.flush()


def report(
    row: dict[str, Any],
    asked: dict[str, str],
    client: docker.DockerClient,
    *,
    run_id: str,
    timeout_s: int,
) -> dict[str, Any]:
    """The harness's report on one patch; ``report`` is ``None`` where it made none."""
    spec = make_test_spec(row)
    prediction = {
        "instance_id": spec.instance_id,
        "model_name_or_path": asked["variant"],
        "model_patch": asked["patch"],
    }
    began_s = time.monotonic()
    result = run_instance(
        spec, prediction, client, run_id, timeout=timeout_s, skip_patch=not asked["patch"]
    )
    log = RUN_EVALUATION_LOG_DIR / run_id / asked["variant"] / spec.instance_id / LOG_TEST_OUTPUT
    statuses = get_logs_eval(spec, str(log))[0] if log.exists() else {}
    return {
        "instance_id": spec.instance_id,
        "variant": asked["variant"],
        "report": result[1][spec.instance_id] if result else None,
        "statuses": statuses,
        "log": str(log.resolve()),
        "seconds": time.monotonic() - began_s,
        "swebench": importlib.metadata.version("swebench"),
    }


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            yield json.loads(line)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path, help="rows with image, eval_script and log_parser")
    parser.add_argument("patches", type=Path, help="what to grade")
    parser.add_argument("--out", type=Path, required=True, help="file of the reports")
    parser.add_argument("--run-id", default="parity", help="names containers and the log folder")
    parser.add_argument("--timeout", type=int, default=1800, help="seconds for one test run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
