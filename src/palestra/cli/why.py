"""``palestra why``: why a run is slow, and why its reward is flat."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import orjson
import typer
from pydantic import TypeAdapter

from palestra.dashboard.why_text import flat_lines, slow_lines
from palestra.run.directory import RunDirectory
from palestra.run.why import WhyReport, explain


def why(
    run: Annotated[Path, typer.Argument(help="The run directory, as in runs/NAME.")],
    step: Annotated[int | None, typer.Option(min=1, help="Of this step alone.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print both reports as JSON, critical paths included.")
    ] = False,
) -> None:
    """Say why a run is slow and why its reward is flat, also while it goes on."""
    report = explain(RunDirectory(run.absolute()), step=step)
    if as_json:
        wire = _REPORT.dump_python(report, mode="json") | {
            "slow_verdict": report.slow.verdict,
            "flat_verdict": report.flat.verdict,
        }
        typer.echo(orjson.dumps(wire, option=orjson.OPT_INDENT_2).decode())
        return
    for line in (*slow_lines(report.slow), "", *flat_lines(report.flat)):
        typer.echo(line)


_REPORT = TypeAdapter(WhyReport)
