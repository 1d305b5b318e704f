"""What grading adds to the run time of the tests themselves; the target is 100 ms at most.

    python benchmarks/grading.py [--rounds 20] [--sandbox bubblewrap] [ROWS.jsonl --images STORE]

In turns, for the gold patch of each task: its script run bare, by one command in a sandbox that
has started and has the patch applied, and the whole of ``grade()``, which checks the patch, starts
a sandbox, applies, runs the same script with what makes its result trustworthy, parses, judges
and removes the sandbox. Tasks: a kata, a toy repository with a real pytest, and given rows.
Besides seconds it prints processor time, of ours and of all processes below, which hardly depends
on what else the machine does; in it the bare run has a sandbox to start, too.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import importlib
import io
import resource
import statistics
import tarfile
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from palestra.config import SandboxSection
from palestra.environment.grading import patches
from palestra.environment.grading.runner import SANDBOX_ENV, SandboxGrader
from palestra.environment.sandboxes.choose import choose_backend
from palestra.environment.sandboxes.protocol import SandboxBackend, SandboxLimits, SandboxSpec
from palestra.records import HOST_IMAGE, Task, TaskFile
from palestra.tasks.source import load_tasks
from palestra.tasks.swegym import END_MARKER, START_MARKER

KATAS = "katas:train?seed=0&n=1&level=1"
TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One run: seconds on the clock, and of the processors."""

    wall_s: float
    processor_s: float


async def bare(backend: SandboxBackend, task: Task) -> Cost:
    """The task's own script in a sandbox that is ready; its clock runs from script to output."""
    began_s = processor_s()
    spec = SandboxSpec.for_task(task, SandboxLimits(), SANDBOX_ENV)
    async with backend.start(spec) as sandbox:
        patch = f"/tmp/{sandbox.sandbox_id}.patch"
        apply = f"{patches.write_command(task.gold_patch, patch)}\n{patches.apply_command(patch)}"
        done = await sandbox.run(apply, timeout_s=TIMEOUT_S)
        assert done.exit_code == 0, done.output
        started_s = time.perf_counter()
        done = await sandbox.run(task.eval_script, timeout_s=TIMEOUT_S)
        wall_s = time.perf_counter() - started_s
        assert END_MARKER in done.output, done.output
    return Cost(wall_s=wall_s, processor_s=processor_s() - began_s)


async def graded(backend: SandboxBackend, task: Task) -> Cost:
    """The whole of a grading."""
    grader = SandboxGrader(backend, SandboxLimits(), eval_timeout_s=TIMEOUT_S)
    began_s, started_s = processor_s(), time.perf_counter()
    verdict = await grader.grade(task, task.gold_patch)
    assert verdict.resolved, verdict.log
    return Cost(wall_s=time.perf_counter() - started_s, processor_s=processor_s() - began_s)


async def measure(backend: SandboxBackend, task: Task, rounds: int) -> str:
    """Both in turns, and what their medians say."""
    runs: dict[Callable[[SandboxBackend, Task], Awaitable[Cost]], list[Cost]] = {}
    for number in range(rounds + 1):
        for kind in (bare, graded) if number % 2 else (graded, bare):
            cost = await kind(backend, task)
            if number:  # the first one warms caches up
                runs.setdefault(kind, []).append(cost)
    (bare_s, bare_cpu_s), (whole_s, whole_cpu_s) = (
        (_median(c.wall_s for c in runs[kind]), _median(c.processor_s for c in runs[kind]))
        for kind in (bare, graded)
    )
    pairs = zip(runs[graded], runs[bare], strict=True)
    added_ms = sorted((whole.wall_s - alone.wall_s) * 1e3 for whole, alone in pairs)
    return (
        f"{task.instance_id}: tests bare {bare_s * 1e3:.0f} ms, graded {whole_s * 1e3:.0f} ms: "
        f"{(whole_s - bare_s) * 1e3:.0f} ms added (of pairs: median {_median(added_ms):.0f}, "
        f"least {added_ms[0]:.0f}, most {added_ms[-1]:.0f}), ratio {whole_s / bare_s:.2f}; "
        f"processor time {bare_cpu_s * 1e3:.0f} and {whole_cpu_s * 1e3:.0f} ms: "
        f"{(whole_cpu_s - bare_cpu_s) * 1e3:.0f} ms added, ratio {whole_cpu_s / bare_cpu_s:.2f}"
    )


def toy_task() -> Task:
    """One module and its test, run by a pytest that the script brings along."""
    path = "test_calc.py"
    script = f"""\
mkdir /tmp/site && base64 -d <<'EOF' | tar xz -C /tmp/site
{_pytest_archive()}EOF
echo 'import calc' >{path}
echo 'def test_one(): assert calc.double(1) == 2' >>{path}
echo 'def test_kept(): assert calc' >>{path}
echo '{START_MARKER}'
PYTHONPATH=$PWD:/tmp/site python3 -B -m pytest -rA -p no:cacheprovider {path} 2>&1
echo '{END_MARKER}'
"""
    return Task(
        instance_id="toy-pytest",
        repo="toy/calc",
        base_commit="HEAD",
        problem_statement="double(1) is 3",
        image=HOST_IMAGE,
        fail_to_pass=(f"{path}::test_one",),
        pass_to_pass=(f"{path}::test_kept",),
        gold_patch="--- a/calc.py\n+++ b/calc.py\n@@ -1 +1 @@\n"
        "-def double(x): return x + x + 1\n+def double(x): return x + x\n",
        test_patch="",
        eval_script=script,
        log_parser="parse_log_pytest",
        files=(TaskFile(path="calc.py", text="def double(x): return x + x + 1\n"),),
    )


def _pytest_archive() -> str:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in ("pytest", "_pytest", "pluggy", "iniconfig", "packaging"):
            archive.add(Path(str(importlib.import_module(name).__file__)).parent, name)
    return base64.encodebytes(packed.getvalue()).decode()


def processor_s() -> float:
    """Processor seconds of this process and of all that it, or they, waited for."""
    used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


async def main() -> None:
    """Measure every task and print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="?", help="rows to measure besides, with images at hand")
    parser.add_argument("--rounds", type=int, default=20, help="runs of each kind")
    parser.add_argument("--row-rounds", type=int, default=5, help="the same, of given rows")
    parser.add_argument("--sandbox", default="bubblewrap", help="bubblewrap, docker or podman")
    parser.add_argument("--images", type=Path, help="store of unpacked images")
    parser.add_argument("--host-image", default=SandboxSection().host_image, help="engines' image")
    args = parser.parse_args()
    section = SandboxSection(backend=args.sandbox, images=args.images, host_image=args.host_image)
    with tempfile.TemporaryDirectory() as state:
        backend = (await choose_backend(section, state_dir=Path(state))).backend
        for task in (*load_tasks(KATAS), toy_task()):
            print(await measure(backend, task, args.rounds))
        for task in load_tasks(args.rows) if args.rows else ():
            print(await measure(backend, task, args.row_rounds), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
