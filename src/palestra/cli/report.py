"""``palestra report``: the page of a run, at any time; also what a run ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palestra.cli.terminal import say, say_error
from palestra.errors import PalestraError
from palestra.report.page import write_report
from palestra.report.run_record import read_run
from palestra.report.summary import summary_lines
from palestra.run.directory import RunDirectory


def report(
    run: Annotated[Path, typer.Argument(help="The run directory, as in runs/NAME.")],
) -> None:
    """Write report.html into a run directory, also while the run goes on, and print its path."""
    record = read_run(RunDirectory(run.absolute()))
    typer.echo(write_report(record))


def conclude(run: RunDirectory) -> None:
    """Write the report of a run that made a step, and say what the run did.

    A run that neither made a step nor evaluated anything has nothing to say. Trouble with
    the report is said and not raised: the run has ended as it ended.
    """
    try:
        record = read_run(run)
        if record.steps:
            write_report(record)
        elif not record.evaluations:
            return
        say("")
        for line in summary_lines(record):
            say(line)
    except PalestraError as error:
        say_error(error)
