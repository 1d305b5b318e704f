"""Handing a recipe over to Miles on a Ray cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import typer

from palestra.backends.miles.compose import compose_job
from palestra.backends.miles.submit import submit
from palestra.cli.loop import run_cancellable
from palestra.cli.terminal import say
from palestra.config import Recipe
from palestra.run.gate import require_certificates
from palestra.tasks.source import load_tasks

_LOOK_TIMEOUT_S = 20.0


def launch(recipe: Recipe, *, origin: Path, overrides: Sequence[str], dry_run: bool) -> None:
    """Start the job of Miles that trains ``recipe``, or print it.

    Args:
        recipe: with ``backend = "miles"``.
        origin: its file.
        overrides: that were laid over it.
        dry_run: print a script that would do the same.

    Raises:
        ConfigError: the recipe asks for what Miles cannot do.
        TaskError: a task that may not be trained on.
        ClusterUnavailable: Ray cannot be reached or refuses.
    """
    job = compose_job(recipe, os.environ, nvlink=_has_nvlink())
    if dry_run:
        typer.echo(job.script(), nl=False)
        return
    _check_tasks(recipe, origin=origin, overrides=overrides)
    submission_id = run_cancellable(submit(job, name=recipe.name), stopping="stopping")
    say(f"job {submission_id} runs on the cluster of {job.address}")
    say(f"ray job logs {submission_id} --follow --address {job.address}")
    typer.echo(submission_id)


def _check_tasks(recipe: Recipe, *, origin: Path, overrides: Sequence[str]) -> None:
    source = Path(recipe.tasks.train)
    if not source.exists():
        say(f"{source} is not on this machine, so its tasks were not checked")
        return
    tasks = load_tasks(recipe.tasks.train, on_bad_row="skip", report=say)
    run_cancellable(
        require_certificates(recipe, tasks, origin=origin, overrides=overrides),
        stopping="stopping",
    )


def _has_nvlink() -> bool | None:
    """Whether the GPUs of this machine are joined by NVLink; ``None`` where it has none."""
    if shutil.which("nvidia-smi") is None:
        return None
    with suppress(OSError, subprocess.TimeoutExpired):
        shown = subprocess.run(
            ["nvidia-smi", "topo", "-m"],
            capture_output=True,
            text=True,
            timeout=_LOOK_TIMEOUT_S,
            check=False,
        )
        if shown.returncode == 0:
            matrix = shown.stdout.partition("Legend")[0]
            return any(word[:2] == "NV" and word[2:].isdecimal() for word in matrix.split())
    return None
