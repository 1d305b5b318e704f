"""Our grader beside the swebench harness: the same rows, images and patches, test by test.

    cd tools; python -m grading_parity ROWS.jsonl --swebench PYTHON --images STORE --out FOLDER

Each row is graded with its gold patch, with none, and with half of the gold patch: by the
harness's own ``run_instance`` on docker (PYTHON is an interpreter that has swebench 5), and by
ours on the given sandbox. A row of a repository that our table knows is graded once more as a
plain row, without the script, parser and image that it brings. docker needs the images under
the names that the rows give. Exit code 1: some report differs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from grading_parity.compare import Key, Report, beside, differences, of_swebench, of_verdict, table
from grading_parity.half_patches import half_patch

from palestra.config import SandboxSection
from palestra.environment.grading.runner import SandboxGrader
from palestra.environment.sandboxes.choose import choose_backend
from palestra.environment.sandboxes.protocol import SandboxLimits
from palestra.records import Task
from palestra.tasks.rows import task_from_row
from palestra.tasks.source import iter_rows
from palestra.tasks.swegym import SPECS

BROUGHT = ("eval_script", "log_parser", "eval_type", "image", "image_name")
HARNESS = Path(__file__).with_name("swebench_reports.py")


def main() -> int:
    """Grade by both, print the table and every difference."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = list(iter_rows(options.tasks))
    reports = options.out / "theirs.jsonl"
    if options.swebench is not None:
        _run_harness(options.swebench, rows, reports)
    theirs = dict(map(of_swebench, map(json.loads, reports.read_text("utf-8").splitlines())))
    ours = asyncio.run(_ours(options, rows))
    print(table(theirs, ours))
    pairs = [(key, there, here) for key, there in theirs.items() for here in ours.get(key, [])]
    found = [_said(key, here, line) for key, a, here in pairs for line in differences(a, here)]
    others = [_said(key, here, line) for key, a, here in pairs for line in beside(a, here)]
    print("", *(f"{n} times {line}" for line, n in Counter(found).items()), sep="\n")
    print(f"{len(found)} differences in {len(pairs)} reports", "Besides, of no list:", sep="\n")
    print(*(f"{n} times {line}" for line, n in Counter(others).items()), sep="\n")
    return 1 if found else 0


def _said(key: Key, here: Report, line: str) -> str:
    return f"{key.instance_id}, {key.variant}, {here.grader}: {line}"


def _run_harness(python: str, rows: Sequence[dict[str, Any]], reports: Path) -> None:
    """Let the harness grade everything, in the folder of ``reports``."""
    folder = reports.parent.resolve()
    _write(folder / "rows.jsonl", rows)
    _write(
        folder / "patches.jsonl",
        [
            {"instance_id": row["instance_id"], "variant": variant, "patch": patch}
            for row in rows
            for variant, patch in _patches(row["patch"]).items()
        ],
    )
    command = [python, str(HARNESS.resolve()), "rows.jsonl", "patches.jsonl"]
    subprocess.run([*command, "--out", reports.name], cwd=folder, check=True)


def _patches(gold: str) -> dict[str, str]:
    return {"gold": gold, "noop": "", "half": half_patch(gold)}


async def _ours(
    options: argparse.Namespace, rows: Sequence[dict[str, Any]]
) -> dict[Key, list[Report]]:
    section = SandboxSection(
        backend=options.sandbox, images=options.images, host_image=options.host_image
    )
    choice = await choose_backend(section, state_dir=options.out / "state")
    grader = SandboxGrader(choice.backend, SandboxLimits(), eval_timeout_s=options.timeout)
    found: dict[Key, list[Report]] = {}
    with (options.out / f"ours-{choice.backend.name}.jsonl").open("w", encoding="utf-8") as log:
        for kind, task in map_tasks(rows):
            name = f"ours, {choice.backend.name}, {kind} row"
            async for key, report in _graded(grader, name, task, options.repeats, log):
                found.setdefault(key, []).append(report)
    return found


def map_tasks(rows: Sequence[dict[str, Any]]) -> list[tuple[str, Task]]:
    """Each row as it is, and once more as a plain one where our table knows its repository."""
    tasks = []
    for row in rows:
        tasks.append(("whole", task_from_row(row)))
        if row["repo"] in SPECS:
            plain = {name: value for name, value in row.items() if name not in BROUGHT}
            tasks.append(("plain", task_from_row(plain)))
    return tasks


async def _graded(
    grader: SandboxGrader, name: str, task: Task, repeats: int, log: Any
) -> AsyncIterator[tuple[Key, Report]]:
    for variant, patch in _patches(task.gold_patch).items():
        for _ in range(1 if variant == "half" else repeats):
            verdict = await grader.grade(task, patch)
            report = of_verdict(name, verdict)
            word = "resolved" if report.resolved else "unresolved"
            print(f"{task.instance_id} {variant} {name}: {word}, {verdict.duration_s:.1f} s",
                  file=sys.stderr)  # fmt: skip
            line = {"instance_id": task.instance_id, "variant": variant, "grader": name}
            line |= {"seconds": verdict.duration_s, "log": verdict.log}
            log.write(json.dumps(line) + "\n")
            yield Key(instance_id=task.instance_id, variant=variant), report


def _write(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m grading_parity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tasks", help="rows with image, eval_script and log_parser")
    parser.add_argument(
        "--swebench", help="interpreter with swebench 5; without it FOLDER/theirs.jsonl is read"
    )
    parser.add_argument("--sandbox", default="bubblewrap", help="bubblewrap, docker or podman")
    parser.add_argument("--images", type=Path, help="store of unpacked images, for bubblewrap")
    parser.add_argument(
        "--host-image",
        default=SandboxSection().host_image,
        help="image of the trial start of docker and podman",
    )
    parser.add_argument("--repeats", type=int, default=3, help="times that ours grades gold, noop")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one test run")
    parser.add_argument("--out", type=Path, required=True, help="folder of reports and logs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
