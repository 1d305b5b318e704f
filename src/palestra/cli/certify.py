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
from palestra.environment.grading.bench import SandboxBench
from palestra.environment.grading.certificates import (
    Certificate,
    CertificateFile,
    CertificateStatus,
)
from palestra.errors import ConfigError, HostError
from palestra.recipe_files import load_recipe, parse_recipe
from palestra.records import Task
from palestra.run.certify import Certification, Plan, Uncertain, certify
from palestra.run.gate import conditions_of
from palestra.run.recipes import find_recipe
from palestra.run.world import make_grader, open_sandboxes
from palestra.tasks.rows import task_to_row
from palestra.tasks.source import load_tasks

_NAMES = {
    CertificateStatus.CERTIFIED: "certified",
    CertificateStatus.GOLD_FAILS: "gold fails",
    CertificateStatus.NOOP_PASSES: "no-op passes",
    CertificateStatus.FLAKY: "flaky tests",
    CertificateStatus.TOO_SLOW: "too slow",
}
_TESTS_SHOWN = 3


def certify_tasks(
    tasks: Annotated[
        str | None,
        typer.Argument(
            help="A task file, or katas:SPLIT?seed=&n=&level=; the recipe's tasks.train without."
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="Take sandboxes, limits and grading from this recipe, to train with it."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key; repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File of the certificates, which are not made again; "
            "the recipe's tasks.certificates, or certificates.jsonl without."
        ),
    ] = None,
    gold_runs: Annotated[int, typer.Option(min=1, help="Gradings of each gold patch.")] = 3,
    max_seconds: Annotated[
        float | None, typer.Option(help="Refuse tasks whose tests take longer.")
    ] = None,
    sandbox: Annotated[SandboxName | None, typer.Option(help="Sandbox backend.")] = None,
    images: Annotated[Path | None, typer.Option(help="Store of unpacked images.")] = None,
    eval_timeout: Annotated[float | None, typer.Option(help="Seconds for the tests.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Tasks at once.")] = 2,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first tasks.")] = None,
    fit: Annotated[
        Path | None, typer.Option(help="Write the tasks that are fit to this file, to train on.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Grade nothing and the gold patch on every task; say which are fit, and write certificates.

    A task is certified when doing nothing fails and the gold patch passes every time. Broken
    rows are named and passed over. Killed and started again, it goes on where it was.
    """
    resolved = _resolve(recipe, overrides or [], sandbox, images, eval_timeout)
    if tasks is None and recipe is None:
        raise ConfigError("give a task file, or a recipe with --recipe")
    source = tasks or resolved.tasks.train
    loaded = load_tasks(source, limit=limit, on_bad_row="skip", report=say)
    file = CertificateFile(path=out or resolved.tasks.certificates or Path("certificates.jsonl"))
    result = run_cancellable(
        _certify(
            resolved, loaded, file, gold_runs=gold_runs, max_s=max_seconds, concurrency=concurrency
        ),
        stopping="stopping; the same command will go on",
    )
    if fit is not None:
        _write_fit(fit, loaded, result)
    typer.echo(orjson.dumps(_wire(result)).decode() if as_json else _table(result))
    if result.uncertain:
        raise typer.Exit(1)


def _resolve(
    recipe: Path | None,
    overrides: list[str],
    sandbox: str | None,
    images: Path | None,
    eval_timeout_s: float | None,
) -> Recipe:
    """The recipe with the options laid over it."""
    options = {
        "sandbox.backend": sandbox,
        "sandbox.images": images,
        "environment.eval_timeout_s": eval_timeout_s,
    }
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    if recipe is not None:
        return load_recipe(find_recipe(recipe), [*overrides, *given])
    return parse_recipe({}, [*overrides, *given], origin="options")


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
        conditions=conditions_of(recipe, backend.name),
        gold_runs=gold_runs,
        max_s=max_s,
        concurrency=concurrency,
    )
    bench = SandboxBench(backend, lambda metered: make_grader(recipe, metered, limits))
    fit = 0
    with Counter("tasks", len(tasks)) as counter:

        def on_task(one: Certificate | Uncertain) -> None:
            nonlocal fit
            fit += isinstance(one, Certificate) and one.status is CertificateStatus.CERTIFIED
            counter.advance(f"{fit} certified")

        return await certify(bench, tasks, file, plan, on_task=on_task)


def _write_fit(path: Path, tasks: list[Task], result: Certification) -> None:
    fit = {
        one.instance_id for one in result.certificates if one.status is CertificateStatus.CERTIFIED
    }
    rows = [task_to_row(task) for task in tasks if task.instance_id in fit]
    try:
        path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    except OSError as error:
        raise HostError.from_os(error, doing=f"cannot write {path}") from error


def _table(result: Certification) -> str:
    """The tasks that are not fit, each with its reason, and how many there are of each kind."""
    unfit = [
        (one.instance_id, _NAMES[one.status], _tests(one))
        for one in result.certificates
        if one.status is not CertificateStatus.CERTIFIED
    ]
    unfit += [(one.instance_id, "not graded", one.error) for one in result.uncertain]
    width = max((len(name) for name, _, _ in unfit), default=0)
    lines = [f"{name:<{width}}  {reason:<12}  {more}".rstrip() for name, reason, more in unfit]
    counts = Counts(one.status for one in result.certificates)
    rows = [(name, counts[status]) for status, name in _NAMES.items()]
    rows.append(("not graded", len(result.uncertain)))
    rows.append(("tasks", counts.total() + len(result.uncertain)))
    lines += [""] if lines else []
    return "\n".join([*lines, *(f"{name:<12}  {count:>6}" for name, count in rows), _cost(result)])


def _cost(result: Certification) -> str:
    if not result.certificates:
        return ""
    slowest = max(result.certificates, key=lambda one: one.longest_s)
    largest = max(result.certificates, key=lambda one: one.peak_memory_bytes or 0)
    text = f"longest grading {slowest.longest_s:.1f} s ({slowest.instance_id})"
    if largest.peak_memory_bytes is not None:
        text += f", most memory {largest.peak_memory_bytes / 1e6:.0f} MB ({largest.instance_id})"
    return text


def _tests(one: Certificate) -> str:
    failed: tuple[str, ...] = ()
    if one.status is CertificateStatus.FLAKY:
        failed = one.flaky_tests
    elif one.status is CertificateStatus.GOLD_FAILS:
        run = next(run for run in one.runs if run.patch == "gold")
        if run.findings:
            return run.findings[0]
        failed = run.failed
    elif one.status is CertificateStatus.TOO_SLOW:
        return f"{one.longest_s:.1f} s"
    more = f" and {len(failed) - _TESTS_SHOWN} more" if len(failed) > _TESTS_SHOWN else ""
    return ", ".join(failed[:_TESTS_SHOWN]) + more


def _wire(result: Certification) -> dict[str, Any]:
    return {
        "statuses": dict(Counts(str(one.status) for one in result.certificates)),
        "tasks": [
            {
                "instance_id": one.instance_id,
                "status": str(one.status),
                "image": one.image,
                "image_identity": one.image_identity,
                "flaky_tests": one.flaky_tests,
                "seconds": [run.duration_s for run in one.runs],
                "peak_memory_bytes": one.peak_memory_bytes,
            }
            for one in result.certificates
        ],
        "not_graded": [
            {"instance_id": one.instance_id, "error": one.error} for one in result.uncertain
        ],
    }
