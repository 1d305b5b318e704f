"""``palestra forge``: tested projects made into tasks."""

from __future__ import annotations

from collections import Counter as Counts
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from pydantic import TypeAdapter

from palestra.cli.loop import run_cancellable
from palestra.cli.terminal import Counter, say
from palestra.config import Recipe
from palestra.environment.grading.certificates import Certificate, CertificateFile
from palestra.environment.sandboxes.images import ImageStore
from palestra.errors import ConfigError, TaskError
from palestra.forge.corpus import CORPUS, held_out, projects_of
from palestra.forge.journal import Tried
from palestra.forge.records import Project
from palestra.forge.rewriting import Model
from palestra.recipe_files import load_recipe, parse_recipe
from palestra.run.forge import Forge, Forged, Plan, rows_of
from palestra.run.places import forge_folder, images_folder
from palestra.run.recipes import find_recipe
from palestra.run.world import open_sandboxes
from palestra.tasks.miles import write_prompt_data

_REASONS_SHOWN = 6


def forge(
    projects: Annotated[
        list[str],
        typer.Argument(
            metavar="PROJECT…",
            help="Names on the package index (NAME or NAME==VERSION), folders of git "
            f"repositories, .txt lists of them, or {CORPUS} for the list that comes along.",
        ),
    ],
    num_tasks: Annotated[int, typer.Option("--n", min=1, help="Tasks to make, of all projects.")],
    output: Annotated[Path, typer.Option(help="Prompt data to write, a .jsonl file.")],
    seed: Annotated[str, typer.Option(help="Of everything that is drawn.")] = "0",
    heldout: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.9,
            help="Share of the projects that are held out; their tasks go to a file of their own, "
            "OUTPUT with .heldout before its suffix.",
        ),
    ] = 0.0,
    certificates: Annotated[
        Path | None,
        typer.Option(
            help="Certificates of the tasks; default: OUTPUT with .certificates before its suffix."
        ),
    ] = None,
    gold_runs: Annotated[int, typer.Option(min=1, help="Gradings of each gold patch.")] = 3,
    at_once: Annotated[int, typer.Option(min=1, help="Bugs tried side by side.")] = 2,
    suite_limit: Annotated[
        float, typer.Option(min=1, help="Seconds that the tests of a project may take.")
    ] = 60.0,
    base: Annotated[
        str | None,
        typer.Option(
            help="Image of the store, or folder with a root file system, that projects are laid "
            "on; default: one that is made with debootstrap."
        ),
    ] = None,
    rewrite_url: Annotated[
        str | None,
        typer.Option(
            help="Address (…/v1) of an OpenAI-compatible model that words each statement anew; "
            "what it leaves out or gives away is not taken."
        ),
    ] = None,
    rewrite_model: Annotated[str | None, typer.Option(help="Its name.")] = None,
    rewrite_key: Annotated[
        str | None, typer.Option(help="Environment variable that holds its key.")
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Folder of checkouts and of what was tried; default: the user's cache."),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="Take sandboxes, limits and grading from this recipe, to train with it."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key; repeatable."),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Store of unpacked images.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Seed bugs into tested projects, and write each as a task that is certified.

    A bug is kept when a few tests fail with it and the others hold. The same seed gives the same
    tasks. Killed and started again, it goes on where it was.
    """
    if output.suffix != ".jsonl":
        raise ConfigError(f"--output {output} is no .jsonl file")
    plan = Plan(
        projects=projects_of(projects),
        num_tasks=num_tasks,
        seed=seed,
        at_once=at_once,
        gold_runs=gold_runs,
        suite_limit_s=suite_limit,
        base=base,
        rewriting=_model(rewrite_url, rewrite_model, rewrite_key),
        folder=work or forge_folder(),
        recipe=_recipe(recipe, overrides or [], images),
    )
    results = run_cancellable(_forge(plan), stopping="stopping; the same command will go on")
    chosen = held_out(
        (one.project.name for one in results if one.project), share=heldout, seed=seed
    )
    train, held = rows_of(results, heldout=lambda name: name in chosen)
    if not train and not held:
        raise TaskError("no task could be made", hint="the lines above say why")
    written = {output: train}
    if heldout:
        written[output.with_suffix(".heldout.jsonl")] = held
    for path, rows in written.items():
        write_prompt_data(path, rows)
    proofs = certificates or output.with_suffix(".certificates.jsonl")
    _write_certificates(proofs, results)
    summary = _summary(results, {str(path): len(rows) for path, rows in written.items()})
    typer.echo(orjson.dumps(summary).decode() if as_json else _table(results, written, proofs))


def _model(url: str | None, name: str | None, key_variable: str | None) -> Model | None:
    if url is None and name is None:
        return None
    if url is None or name is None:
        raise ConfigError("--rewrite-url and --rewrite-model are given together")
    return Model(base_url=url, name=name, key_variable=key_variable)


def _recipe(recipe: Path | None, overrides: list[str], images: Path | None) -> Recipe:
    # Projects are laid on unpacked images; a task of theirs then runs on every backend.
    given = ["sandbox.backend=bubblewrap"]
    if images is not None:
        given.append(f"sandbox.images={images}")
    if recipe is not None:
        return load_recipe(find_recipe(recipe), [*overrides, *given])
    return parse_recipe({}, [*overrides, *given], origin="options")


async def _forge(plan: Plan) -> tuple[Forged, ...]:
    backend, limits = await open_sandboxes(plan.recipe)
    store = ImageStore(plan.recipe.sandbox.images or images_folder())
    with Counter("tasks", plan.num_tasks) as counter:
        return await Forge(plan, store, backend, limits, _View(counter)).make()


class _View:
    """Counts the tasks, and says what a project is at."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._tried: Counts[str] = Counts()

    def say(self, text: str) -> None:
        say(text)

    def on_tried(self, project: Project, tried: Tried) -> None:
        self._tried[project.name] += 1
        if tried.reason is None:
            self._counter.advance(f"({project.name}, {self._tried[project.name]} bugs tried)")


def _write_certificates(path: Path, results: tuple[Forged, ...]) -> None:
    file = CertificateFile(path=path)
    known = {(one.row_sha256, one.image_identity) for one in file.read()}
    adapter = TypeAdapter(Certificate)
    made = [
        adapter.validate_python(tried.certificate)
        for forged in results
        for tried in (forged.made.tasks if forged.made else ())
    ]
    file.append(one for one in made if (one.row_sha256, one.image_identity) not in known)


def _summary(results: tuple[Forged, ...], written: dict[str, int]) -> dict[str, Any]:
    return {
        "tasks": sum(written.values()),
        "files": written,
        "projects": [
            {
                "origin": one.project.origin if one.project else one.origin,
                "tasks": len(one.made.tasks) if one.made else 0,
                "stable_tests": one.num_stable,
                "refused": dict(one.made.refused) if one.made else {},
                "problem": one.problem,
            }
            for one in results
        ],
    }


def _table(
    results: tuple[Forged, ...], written: dict[Path, list[dict[str, Any]]], proofs: Path
) -> str:
    """Tasks by project, why bugs were refused, and where everything was written."""
    width = max(len(one.origin) for one in results)
    lines = []
    refused: Counts[str] = Counts()
    for one in results:
        number = len(one.made.tasks) if one.made else 0
        refused.update(one.made.refused if one.made else {})
        lines.append(f"{one.origin:<{width}}  {number:>6}  {one.problem or ''}".rstrip())
    lines += [""]
    lines += [
        f"{count:>6}  bugs refused: {why}" for why, count in refused.most_common(_REASONS_SHOWN)
    ]
    lines += [f"{len(rows):>6}  tasks in {path}" for path, rows in written.items()]
    levels = Counts(row["difficulty"] for rows in written.values() for row in rows)
    lines.append("by difficulty: " + ", ".join(f"{k}: {n}" for k, n in sorted(levels.items())))
    lines.append(f"certificates in {proofs}")
    return "\n".join(lines)
