"""``palestra doctor``: what this machine has, and what to do about what it lacks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from palestra.cli.loop import run_cancellable
from palestra.cli.terminal import Counter
from palestra.config import Recipe
from palestra.recipe_files import load_recipe, parse_recipe
from palestra.run.doctor import Finding, Level, examine
from palestra.run.recipes import find_recipe

_SIGNS = {Level.GOOD: ("ok  ", "green"), Level.NOTE: ("note", "yellow"), Level.BAD: ("BAD ", "red")}


def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(help="Recipe whose settings and addresses are looked at.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value; repeatable.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="Compare this engine's logprobs with the trainer's instead: local, or the "
            "http://HOST:PORT of an SGLang server that serves model.path."
        ),
    ] = None,
    sessions: Annotated[int, typer.Option(min=1, help="Sessions that --engine samples.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look at versions, sandboxes, images, disks, GPU, hub and addresses; say what to do.

    Ends with 1 if something does not work. Notes are about what works without, at a price.
    """
    settings = load_recipe(find_recipe(recipe), overrides or ()) if recipe else _defaults(overrides)
    if engine is not None:
        _compare_engine(settings, engine, sessions, as_json=as_json)
        return
    findings = run_cancellable(_examined(settings, as_json=as_json), stopping="stopping")
    if as_json:
        typer.echo(orjson.dumps(findings).decode())
    if any(finding.level is Level.BAD for finding in findings):
        raise typer.Exit(1)


def _defaults(overrides: list[str] | None) -> Recipe:
    return parse_recipe({}, overrides=overrides or (), origin="options")


async def _examined(recipe: Recipe, *, as_json: bool) -> list[Finding]:
    findings = []
    async for finding in examine(recipe):
        findings.append(finding)
        if not as_json:
            _print(finding)
    return findings


def _compare_engine(recipe: Recipe, engine: str, num_sessions: int, *, as_json: bool) -> None:
    from palestra.run.engines import compared
    from palestra.run.fidelity import describe

    with Counter("sessions", num_sessions) as counter:
        found = run_cancellable(
            compared(recipe, engine, num_sessions=num_sessions, on_session=counter.advance),
            stopping="stopping",
        )
    typer.echo(orjson.dumps(found).decode() if as_json else describe(found))


def _print(finding: Finding) -> None:
    sign, colour = _SIGNS[finding.level]
    console = Console(soft_wrap=True, highlight=False)
    console.print(sign, style=colour if sys.stdout.isatty() else None, end="  ")
    console.print(f"{finding.about}: {finding.seen}", markup=False)
    if finding.advice:
        console.print(f"      → {finding.advice}", markup=False)
