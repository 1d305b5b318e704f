"""``palestra export``: a checkpoint's model for anyone who loads Hugging Face folders."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from palestra.errors import ConfigError, MissingExtra
from palestra.run.directory import RunDirectory


def export(
    run: Annotated[Path, typer.Argument(help="The run directory, as in runs/NAME.")],
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to make.")],
    step: Annotated[
        int | None, typer.Option(min=0, help="Of this step; default: the newest checkpoint.")
    ] = None,
    best: Annotated[
        bool,
        typer.Option("--best", help="Of those that are kept, the one that did best held out."),
    ] = False,
) -> None:
    """Copy a checkpoint's weights, config and tokenizer to a folder of their own; print it."""
    if best and step is not None:
        raise ConfigError("give either --step or --best")
    try:
        importlib.import_module("torch")
    except ImportError:
        raise MissingExtra.named("train", needed_for="export", module="torch") from None
    from palestra.run import export as exporting

    checkpoint = exporting.find_checkpoint(RunDirectory(run.absolute()), step=step, best=best)
    exporting.export(checkpoint, to.absolute())
    typer.echo(to)
