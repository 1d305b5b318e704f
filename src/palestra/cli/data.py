"""``palestra data``: task files in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palestra.cli.terminal import say
from palestra.tasks.miles import write_prompt_data
from palestra.tasks.source import iter_rows

app = typer.Typer(no_args_is_help=True, help="Task files.")


@app.callback()
def _data() -> None:
    pass


@app.command("prepare")
def prepare(
    source: Annotated[
        str,
        typer.Option(
            "--input", help="A .jsonl, .jsonl.gz or .parquet file, or katas:SPLIT?seed=&n=&level=."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Prompt data to write, a .jsonl file.")],
    split: Annotated[str, typer.Option(help="Written where a row names none.")] = "train",
    subset: Annotated[str, typer.Option(help="Written where a row names none.")] = "gym",
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many rows.")] = None,
) -> None:
    """Write tasks as Miles prompt data, one JSON object a line."""
    count = write_prompt_data(output, iter_rows(source, limit=limit), subset=subset, split=split)
    say(f"{count} tasks in {output}")
