"""``palestra certify``: which tasks are fit to be trained on."""

from __future__ import annotations

from collections import Counter as Counts
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from palestra.cli.loop import run_cancellable
from palestra.cli.terminal import Counter, say
from palestra.config import Recipe, SandboxName
from palestra.environment.grading.certificates import (
    Certificate,
    CertificateFile,
    CertificateStatus,
    Conditions,
)
from palestra.recipe_files import parse_recipe
from palestra.records import Task
from palestra.run.certify import Certification, Plan, Uncertain, certify
from palestra.run.world import make_grader, open_sandboxes
from palestra.tasks.source import load_tasks

_REASONS = {
    CertificateStatus.NOOP_PASSES: "passes with nothing done",
    CertificateStatus.GOLD_FAILS: "its gold patch fails",
    CertificateStatus.FLAKY: "its tests do not repeat",
    CertificateStatus.TOO_SLOW: "takes too long",
}


def certify_tasks(
    tasks: Annotated[str, typer.Argument(help="A task file, or katas:SPLIT?seed=&n=&level=.")],
    out: Annotated[
        Path, typer.Option(help="File of the certificates; those in it are not made again.")
    ] = Path("certificates.jsonl"),
    gold_runs: Annotated[int, typer.Option(min=1, help="Gradings of each gold patch.")] = 3,
    max_seconds: Annotated[
        float | None, typer.Option(help="Refuse tasks whose tests take longer.")
    ] = None,
    sandbox: Annotated[SandboxName, typer.Option(help="Sandbox backend.")] = "auto",
    images: Annotated[Path | None, typer.Option(help="Store of unpacked images.")] = None,
    eval_timeout: Annotated[float, typer.Option(help="Seconds for the tests.")] = 1800,
    concurrency: Annotated[int, typer.Option(min=1, help="Tasks at once.")] = 2,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first tasks.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Grade nothing and the gold patch on every task; say which are fit, and write certificates.

    A task is certified when doing nothing fails and the gold patch passes every time. Broken
    rows are named and passed over. Killed and started again, it goes on where it was.
    """
    loaded = load_tasks(tasks, limit=limit, on_bad_row="skip", report=say)
    recipe = parse_recipe(
        {
            "sandbox": {"backend": sandbox, **({"images": images} if images else {})},
            "environment": {"eval_timeout_s": eval_timeout},
        },
        origin="options",
    )
    result = run_cancellable(
        _certify(
            recipe,
            loaded,
            CertificateFile(path=out),
            gold_runs=gold_runs,
            max_s=max_seconds,
            concurrency=concurrency,
        ),
        stopping="stopping",
    )
    typer.echo(orjson.dumps(_wire(result)).decode() if as_json else _table(result))
    if result.uncertain:
        raise typer.Exit(1)


async def _certify(
    recipe: Recipe,
    tasks: list[Task],
    file: CertificateFile,
    *,
    gold_runs: int,
    max_s: float | None,
    concurrency: int,
) -> Certification:
    backend, limits = await open_sandboxes(recipe, on_choice=lambda c: say(c.describe()))
    plan = Plan(
        conditions=Conditions.of(
            backend.name, limits, eval_timeout_s=recipe.environment.eval_timeout_s
        ),
        gold_runs=gold_runs,
        max_s=max_s,
        concurrency=concurrency,
    )
    fit = 0
    with Counter("tasks", len(tasks)) as counter:

        def on_task(one: Certificate | Uncertain) -> None:
            nonlocal fit
            fit += isinstance(one, Certificate) and one.status is CertificateStatus.CERTIFIED
            counter.advance(f"{fit} certified")

        return await certify(
            make_grader(recipe, backend, limits), tasks, file, plan, on_task=on_task
        )


def _table(result: Certification) -> str:
    """The tasks that are not fit, each with its reason, and a last line that counts."""
    lines = []
    for one in result.certificates:
        if one.status is not CertificateStatus.CERTIFIED:
            tests = f": {', '.join(_tests(one))}" if _tests(one) else ""
            lines.append(f"{one.instance_id}  {_REASONS[one.status]}{tests}")
    lines += [f"{one.instance_id}  could not be graded: {one.error}" for one in result.uncertain]
    counts = Counts(str(one.status) for one in result.certificates)
    counts["could not be graded"] = len(result.uncertain)
    total = len(result.certificates) + len(result.uncertain)
    parts = [f"{n} {name.replace('_', ' ')}" for name, n in counts.items() if n]
    return "\n".join([*lines, f"{total} tasks: {', '.join(parts)}"])


def _tests(one: Certificate) -> tuple[str, ...]:
    if one.status is CertificateStatus.FLAKY:
        return one.flaky_tests
    if one.status is CertificateStatus.GOLD_FAILS:
        return next(run.failed for run in one.runs if run.patch == "gold")
    return ()


def _wire(result: Certification) -> dict[str, Any]:
    return {
        "statuses": dict(Counts(str(one.status) for one in result.certificates)),
        "tasks": [
            {
                "instance_id": one.instance_id,
                "status": str(one.status),
                "flaky_tests": one.flaky_tests,
                "seconds": [run.duration_s for run in one.runs],
            }
            for one in result.certificates
        ],
        "not_graded": [
            {"instance_id": one.instance_id, "error": one.error} for one in result.uncertain
        ],
    }
