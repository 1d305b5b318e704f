"""The pages, as HTML."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from palestra.dashboard.comparing import common_step, metric_diffs, setting_diffs
from palestra.dashboard.episode_view import EpisodeView, view_of
from palestra.dashboard.index import EpisodeRow, RunIndex
from palestra.dashboard.library import is_live, read_recipe
from palestra.dashboard.listing import REWARDS, SORTS, TRAINING
from palestra.dashboard.panels import column
from palestra.dashboard.rendering import render
from palestra.dashboard.site import NothingThere, Site
from palestra.records import Outcome

_HEADLINES = (
    ("solve rate", "solve_rate", "share"),
    ("reward", "reward/mean", "number"),
    ("entropy", "train/entropy", "number"),
    ("KL", "train/kl_loss", "number"),
    ("turns an episode", "agent/turns_mean", "number"),
    ("ids an episode", "rollout/sampled_tokens_mean", "number"),
    ("sampled ids/s", "tokens_per_s", "number"),
    ("staleness", "train/staleness_mean", "number"),
    ("seconds a step", "time/step_s", "seconds"),
)


def page_routes(site: Site) -> APIRouter:
    """Every page."""
    router = APIRouter()
    pages = _Pages(site)
    router.get("/")(pages.runs)
    router.get("/now")(pages.server)
    router.get("/compare")(pages.compare)
    router.get("/runs/{run}")(pages.run)
    router.get("/runs/{run}/now")(pages.now)
    router.get("/runs/{run}/episodes")(pages.episodes)
    router.get("/runs/{run}/episode")(pages.episode)
    return router


class _Pages:
    def __init__(self, site: Site) -> None:
        self._site = site

    def runs(self) -> Response:
        library = self._site.library
        summaries = library.summaries()
        return html(
            "runs.html.j2",
            run=None,
            tab="runs",
            is_live=False,
            runs=summaries,
            root=str(library.root),
            has_server=self._site.options.environment_url is not None,
        )

    def server(self) -> Response:
        """The environment server that the viewer was told of, without a run."""
        return html("now.html.j2", run=None, tab="now", is_live=True, data="/now.json")

    def run(self, run: str) -> Response:
        index = self._site.library.open(run)
        recipe = read_recipe(index.run)
        values = [
            (label, column(index, metric)[-1] if index.metrics.steps else None, unit)
            for label, metric, unit in _HEADLINES
        ]
        return html(
            "run.html.j2",
            **of_run(index),
            index=index,
            headlines=[item for item in values if item[1] is not None],
            planned=_planned(recipe),
            recipe=recipe,
            evaluations=self._site.evaluations.names(index.run),
        )

    def now(self, run: str) -> Response:
        index = self._site.library.open(run)
        return html("now.html.j2", **(of_run(index) | {"tab": "now"}), data=f"/runs/{run}/now.json")

    def episodes(self, run: str, of: str = TRAINING) -> Response:
        index = self._site.library.open(run)
        return html(
            "episodes.html.j2",
            **(of_run(index) | {"tab": "episodes"}),
            of=of,
            sets=[TRAINING, *self._site.evaluations.names(index.run)],
            outcomes=[outcome.value for outcome in Outcome],
            rewards=list(REWARDS),
            sorts=[(key, words) for key, (words, _) in SORTS.items()],
        )

    def episode(
        self,
        run: str,
        rollout_id: Annotated[str, Query(alias="id")],
        of: str = TRAINING,
        beside: str = "",
    ) -> Response:
        index = self._site.library.open(run)
        row = self._site.row(index, of, rollout_id)
        group = self._site.siblings(index, of, row)
        at = next((i for i, one in enumerate(group) if one.rollout_id == row.rollout_id), 0)
        columns = [self._column(index, of, row)]
        if beside:
            columns.append(self._column(index, of, self._site.row(index, of, beside)))
        return html(
            "episode.html.j2",
            **(of_run(index) | {"tab": "episodes"}),
            of=of,
            row=row,
            group=group,
            before=group[at - 1] if at > 0 else None,
            after=group[at + 1] if at + 1 < len(group) else None,
            columns=columns,
            beside=beside,
        )

    def compare(self, a: str = "", b: str = "") -> Response:
        names = self._site.library.names()
        context: dict[str, Any] = {"run": None, "tab": "compare", "is_live": False, "names": names}
        if not (a and b):
            return html("compare.html.j2", **context, a=a, b=b, settings=(), metrics=(), step=None)
        first, second = self._site.library.open(a), self._site.library.open(b)
        return html(
            "compare.html.j2",
            **context,
            a=a,
            b=b,
            settings=setting_diffs(first, second),
            metrics=metric_diffs(first, second),
            step=common_step(first, second),
        )

    def _column(
        self, index: RunIndex, of: str, row: EpisodeRow
    ) -> tuple[EpisodeRow, EpisodeView | None, str]:
        """The row, the episode if it can be shown, and otherwise why not."""
        try:
            return row, view_of(self._site.stored(index, of, row)), ""
        except NothingThere as error:
            return row, None, str(error)


def of_run(index: RunIndex) -> dict[str, Any]:
    """What every page of a run needs."""
    return {"run": index.run.root.name, "tab": "run", "is_live": is_live(index.run)}


def _planned(recipe: dict[str, Any]) -> int | None:
    steps = recipe.get("training", {}).get("steps")
    return steps if isinstance(steps, int) else None


def html(template: str, **context: Any) -> Response:
    """A page as an answer."""
    return Response(render(template, **context), media_type="text/html; charset=utf-8")
