"""``palestra eval --regrade``: the stored patches of a run, graded again."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import typer

from palestra.cli.loop import run_cancellable
from palestra.cli.terminal import Counter, say
from palestra.config import Recipe
from palestra.environment.grading.protocol import Grader
from palestra.environment.grading.reuse import ReusingGrader
from palestra.report.words import count, plural
from palestra.run.episode_tasks import EpisodeTasks
from palestra.run.regrade import FailedRegrade, Regraded, RegradeReport, regrade
from palestra.run.stored_episodes import StoredEpisode, stored_episodes
from palestra.run.world import make_grader, open_sandboxes

_MAX_TESTS = 5


def regrade_run(
    folder: Path,
    recipe: Recipe,
    tasks: str | None,
    *,
    concurrency: int,
    limit: int | None,
    as_json: bool,
) -> None:
    """Grade every patch of a run again and print what changed.

    Args:
        folder: of the run or the evaluation.
        recipe: of the run, with options laid over it.
        tasks: source of rows to grade with; ``None``: the run's own.
        concurrency: most gradings at once.
        limit: only this many episodes.
        as_json: print JSON.

    Raises:
        typer.Exit: with 1, when a patch could not be graded.
    """
    rows = EpisodeTasks(recipe, tasks, report=say)
    episodes = list(islice(stored_episodes(folder), limit))
    report = run_cancellable(_regrade(episodes, rows, recipe, concurrency), stopping="stopping")
    if as_json:
        typer.echo(orjson.dumps(report_to_wire(report), option=orjson.OPT_INDENT_2).decode())
    else:
        for line in report_lines(report):
            typer.echo(line)
    if report.failed:
        raise typer.Exit(1)


def report_to_wire(report: RegradeReport) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "regraded": len(report.regraded),
        "unchanged": len(report.regraded) - len(report.changed),
        "without_patch": report.num_without_patch,
        "moves": {f"{old} to {new}": n for (old, new), n in sorted(report.moves.items())},
        "changed": [_changed_to_wire(item) for item in report.changed],
        "failed": [
            {"episode": f.name, "instance_id": f.instance_id, "error": f.error}
            for f in report.failed
        ],
    }


def report_lines(report: RegradeReport) -> list[str]:
    """What changed, for people."""
    lines = []
    for item in report.changed:
        lines.append(
            f"{item.name} ({item.instance_id}): {item.before.outcome.value} → "
            f"{item.after.outcome.value}, reward {_reward(item.before.reward)} → "
            f"{_reward(item.after.reward)}"
        )
        lines += [
            f"  {test.test}: {test.before or 'not run'} → {test.after or 'not run'}"
            for test in item.tests[:_MAX_TESTS]
        ]
        if len(item.tests) > _MAX_TESTS:
            lines.append(f"  … {count(len(item.tests) - _MAX_TESTS)} more")
    lines += [f"{f.name} ({f.instance_id}): not graded: {f.error}" for f in report.failed]
    moves = ", ".join(f"{n} {old} → {new}" for (old, new), n in sorted(report.moves.items()))
    lines.append(
        f"{plural(len(report.regraded), 'patch', 'patches')} graded again: "
        f"{count(len(report.changed))} changed{f' ({moves})' if moves else ''}, "
        f"{count(len(report.failed))} could not be graded, "
        f"{count(report.num_without_patch)} without a patch"
    )
    return lines


async def _regrade(
    episodes: list[StoredEpisode], rows: EpisodeTasks, recipe: Recipe, concurrency: int
) -> RegradeReport:
    backend, limits = await open_sandboxes(recipe, on_choice=lambda choice: say(choice.describe()))
    grader: Grader = make_grader(recipe, backend, limits)
    if recipe.environment.reuse_verdicts:
        grader = ReusingGrader(grader)
    num_changed = 0
    with Counter("patches", sum(e.episode.patch is not None for e in episodes)) as counter:

        def on_episode(done: Regraded | FailedRegrade) -> None:
            nonlocal num_changed
            num_changed += isinstance(done, Regraded) and done.is_changed
            counter.advance(f"{num_changed} changed")

        return await regrade(
            episodes,
            rows,
            grader,
            backend=backend,
            limits=limits,
            concurrency=concurrency,
            on_episode=on_episode,
        )


def _changed_to_wire(item: Regraded) -> dict[str, Any]:
    return {
        "episode": item.name,
        "instance_id": item.instance_id,
        "outcome": {"before": item.before.outcome.value, "after": item.after.outcome.value},
        "reward": {"before": item.before.reward, "after": item.after.reward},
        "tests": {test.test: [test.before, test.after] for test in item.tests},
    }


def _reward(reward: float | None) -> str:
    return "none" if reward is None else f"{reward:g}"
