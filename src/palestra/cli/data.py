"""``palestra data``: task files in and out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table

from palestra.cli.terminal import Counter, say
from palestra.environment.grading.certificates import (
    Certificate,
    CertificateFile,
    CertificateStatus,
    row_hash,
)
from palestra.errors import HostError, TaskError
from palestra.records import Task
from palestra.tasks.katas.spec import PREFIX
from palestra.tasks.miles import PromptDataFile, prompt_data_file
from palestra.tasks.prepare import (
    Chosen,
    Division,
    OnBadRow,
    Selection,
    Side,
    Summary,
    choose,
    summarize,
)
from palestra.tasks.source import SourceItem, iter_items

_SOURCE_HELP = (
    "A .jsonl, .jsonl.gz or .parquet file, a folder of them, a hub name such as "
    "SWE-Gym/SWE-Gym, or katas:SPLIT?seed=&n=&level=."
)
_MOST_LINES = 12

app = typer.Typer(no_args_is_help=True, help="Task files.")


@app.callback()
def _data() -> None:
    pass


@app.command("prepare")
def prepare(
    source: Annotated[str, typer.Option("--input", help=_SOURCE_HELP)],
    output: Annotated[Path, typer.Option(help="Prompt data to write, a .jsonl file.")],
    split: Annotated[
        str | None, typer.Option(help="Split to read, and written into each row.")
    ] = None,
    subset: Annotated[str | None, typer.Option(help="Written into each row.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many rows.")] = None,
    repo: Annotated[
        list[str] | None, typer.Option(help="Only tasks of this repository; repeatable.")
    ] = None,
    ids_file: Annotated[
        Path | None, typer.Option(help="Only tasks whose ids stand in this file, one a line.")
    ] = None,
    max_tests: Annotated[
        int | None, typer.Option(min=1, help="Only tasks with at most so many tests.")
    ] = None,
    certified: Annotated[
        Path | None, typer.Option(help="Only tasks that this file of certificates certifies.")
    ] = None,
    validation_output: Annotated[
        Path | None, typer.Option(help="Prompt data of the tasks that are held out.")
    ] = None,
    validation_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of tasks to hold out, chosen by their ids.")
    ] = 0.0,
    validation_repo: Annotated[
        list[str] | None, typer.Option(help="Hold out this repository; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of what is held out.")] = 0,
    on_bad_row: Annotated[
        str, typer.Option(help="skip, fail, or keep (written as it stands, if it has a statement).")
    ] = "skip",
) -> None:
    """Write tasks as Miles prompt data, one JSON object a line.

    Rows that cannot be used are named with their id and what is wrong. The files appear
    under their names when they are whole.
    """
    _check_division(validation_output, validation_share, validation_repo or ())
    # Katas know their split; other rows are written as the example's converter writes them.
    is_kata = source.startswith(PREFIX)
    chosen = choose(
        iter_items(source, split=split),
        selection=Selection(
            repos=frozenset(repo or ()),
            ids=_ids(ids_file),
            max_tests=max_tests,
            is_certified=_certifier(certified),
        ),
        division=Division(
            share=validation_share, repos=frozenset(validation_repo or ()), seed=seed
        ),
        on_bad_row=_checked(on_bad_row),
        report=say,
        limit=limit,
    )
    names = {"subset": subset, "split": split}
    if not is_kata:
        names = {"subset": subset or "gym", "split": split or "train"}
    with ExitStack() as stack:
        files: dict[Side, PromptDataFile] = {
            "train": stack.enter_context(prompt_data_file(output, **names))
        }
        if validation_output is not None:
            files["validation"] = stack.enter_context(prompt_data_file(validation_output, **names))
        _write(chosen, files)
        if not any(file.count for file in files.values()):
            raise TaskError(f"no row of {source} was left to write")
    for file in files.values():
        say(f"{file.count} tasks in {file.path}")


@app.command("show")
def show(
    source: Annotated[str, typer.Argument(help=_SOURCE_HELP)],
    split: Annotated[str | None, typer.Option(help="Split to read.")] = None,
    certificates: Annotated[
        Path | None, typer.Option(help="File of certificates to look tasks up in.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Say what a source holds: repositories, tests, images, and what cannot be used."""
    state = _state_of(certificates) if certificates is not None else None
    summary = summarize(_counted(iter_items(source, split=split)), certificate_state=state)
    if as_json:
        typer.echo(orjson.dumps(asdict(summary) | {"tasks": summary.num_tasks}).decode())
    else:
        _print(source, summary)
    if not summary.num_tasks:
        raise TaskError(f"{source} holds no task that can be used")


def _checked(on_bad_row: str) -> OnBadRow:
    if on_bad_row not in ("skip", "fail", "keep"):
        raise typer.BadParameter("skip, fail or keep", param_hint="--on-bad-row")
    return on_bad_row  # type: ignore[return-value]  # one of the three


def _check_division(output: Path | None, share: float, repos: Iterable[str]) -> None:
    is_divided = share > 0 or bool(list(repos))
    if is_divided and output is None:
        raise typer.BadParameter("say where they go", param_hint="--validation-output")
    if output is not None and not is_divided:
        raise typer.BadParameter(
            "say which tasks: --validation-share or --validation-repo",
            param_hint="--validation-output",
        )


def _ids(path: Path | None) -> frozenset[str] | None:
    if path is None:
        return None
    try:
        return frozenset(path.read_text(encoding="utf-8").split())
    except OSError as error:
        raise HostError.from_os(error, doing=f"cannot read {path}") from error


def _newest(path: Path) -> dict[str, Certificate]:
    if not path.is_file():
        raise HostError(
            f"there is no file of certificates {path}", hint="palestra certify makes one"
        )
    return {one.row_sha256: one for one in CertificateFile(path=path).read()}


def _certifier(path: Path | None) -> Callable[[Task], bool] | None:
    if path is None:
        return None
    state = _state_of(path)
    return lambda task: state(task) == CertificateStatus.CERTIFIED


def _state_of(path: Path) -> Callable[[Task], str]:
    certificates = _newest(path)

    def state(task: Task) -> str:
        one = certificates.get(row_hash(task))
        return "not certified" if one is None else str(one.status)

    return state


def _write(chosen: Iterable[Chosen], files: dict[Side, PromptDataFile]) -> None:
    with Counter("rows", None) as counter:
        for one in chosen:
            files[one.side].write(one.row)
            counter.advance()


def _counted(items: Iterable[SourceItem]) -> Iterator[SourceItem]:
    with Counter("rows", None) as counter:
        for item in items:
            yield item
            counter.advance()


def _print(source: str, summary: Summary) -> None:
    console = Console(soft_wrap=True)
    console.print(f"{source}: {summary.num_tasks} tasks", highlight=False)
    for title, counts in (
        ("repository", summary.repos),
        ("subset/split", summary.splits),
        ("image", summary.images),
        ("certificate", summary.certificates),
    ):
        if counts:
            console.print(_table(title, counts))
    for name, numbers in (("flip", summary.fail_to_pass), ("hold", summary.pass_to_pass)):
        if numbers:
            console.print(
                f"tests that must {name}: median {median(numbers):g}, "
                f"{min(numbers)} to {max(numbers)}",
                highlight=False,
            )
    for line in summary.bad_rows:
        console.print(f"cannot be used: {line}", highlight=False, markup=False)


def _table(title: str, counts: Mapping[str, int]) -> Table:
    table = Table(title, "tasks", box=None, pad_edge=False)
    rows = list(counts.items())
    for name, count in rows[:_MOST_LINES]:
        table.add_row(name, str(count))
    if len(rows) > _MOST_LINES:
        rest = rows[_MOST_LINES:]
        table.add_row(f"and {len(rest)} others", str(sum(count for _, count in rest)))
    return table
