"""What the pages' scripts fetch, as JSON."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from palestra.dashboard.comparing import joint_series
from palestra.dashboard.index import RunIndex
from palestra.dashboard.library import is_live
from palestra.dashboard.listing import MAX_ROWS, PAGE_ROWS, TRAINING, parse_query, select, to_wire
from palestra.dashboard.now import machine_now
from palestra.dashboard.panels import series_of
from palestra.dashboard.rendering import to_json
from palestra.dashboard.site import Site
from palestra.dashboard.tokens import PAGE_IDS, token_page

_TIMELINE_STEPS = 400
_RECENT_S = 300.0


def data_routes(site: Site) -> APIRouter:
    """Every address that answers with data."""
    router = APIRouter()
    data = _Data(site)
    router.get("/now.json")(data.server)
    router.get("/compare.json")(data.compare)
    router.get("/runs/{run}/series.json")(data.series)
    router.get("/runs/{run}/now.json")(data.now)
    router.get("/runs/{run}/episodes.json")(data.episodes)
    router.get("/runs/{run}/tokens.json")(data.tokens)
    router.get("/runs/{run}/record")(data.record)
    return router


class _Data:
    def __init__(self, site: Site) -> None:
        self._site = site

    def series(self, run: str, since: int = -1) -> Response:
        """Panels and timeline; nothing when nothing was added since a revision."""
        index = self._site.library.open(run)
        if index.revision == since:
            return Response(status_code=204)
        return to_json(
            {
                "revision": index.revision,
                "live": is_live(index.run),
                "panels": series_of(index),
                "timeline": _timeline(index),
                "evaluated": [[e.step, e.time_s] for e in index.held_out.values()],
                "episodes": len(index.episodes()),
            }
        )

    def compare(self, a: str, b: str) -> Response:
        """The panels of two runs on the same axes."""
        first, second = self._site.library.open(a), self._site.library.open(b)
        return to_json({"panels": joint_series(first, second, (a, b))})

    def server(self) -> Response:
        """The environment server that the viewer was told of."""
        return to_json(
            {
                "environment": self._site.environment(None),
                "machine": machine_now(self._site.library.root),
                "engine": None,
                "recent": None,
                "notices": [],
            }
        )

    def now(self, run: str) -> Response:
        """What a run does at this moment."""
        index = self._site.library.open(run)
        return to_json(
            {
                "live": is_live(index.run),
                "heard_s": index.heard_s,
                "clock_s": time.time(),
                "environment": self._site.environment(index),
                "machine": machine_now(index.run.root),
                "engine": _engine(index),
                "recent": _recent(index),
                "notices": [
                    [notice.time_s, notice.kind, notice.text] for notice in index.notices[-12:]
                ],
            }
        )

    def episodes(
        self,
        request: Request,
        run: str,
        of: str = TRAINING,
        offset: int = 0,
        limit: int = PAGE_ROWS,
        since: int = -1,
    ) -> Response:
        """A part of the list that the filters leave."""
        index = self._site.library.open(run)
        if index.revision == since:
            return Response(status_code=204)
        chosen = select(self._site.rows(index, of), parse_query(request.query_params))
        offset, limit = max(0, offset), max(0, min(limit, MAX_ROWS))
        rewards = [row.reward for row in chosen if row.reward is not None]
        return to_json(
            {
                "revision": index.revision,
                "total": len(chosen),
                "offset": offset,
                "rows": [to_wire(row) for row in chosen[offset : offset + limit]],
                "graded": len(rewards),
                "solved": sum(reward == 1.0 for reward in rewards),
            }
        )

    def tokens(
        self,
        run: str,
        rollout_id: Annotated[str, Query(alias="id")],
        of: str = TRAINING,
        path: int = 0,
        offset: int = 0,
        limit: int = PAGE_IDS,
    ) -> Response:
        """A part of the ids of an episode."""
        index = self._site.library.open(run)
        stored = self._site.stored(index, of, self._site.row(index, of, rollout_id))
        tokenizer = self._site.tokenizers.of(index.run)
        page = token_page(stored, tokenizer, path=path, offset=offset, limit=limit)
        return to_json(page)

    def record(
        self, run: str, rollout_id: Annotated[str, Query(alias="id")], of: str = TRAINING
    ) -> Response:
        """An episode as it was stored, byte for byte."""
        index = self._site.library.open(run)
        line = self._site.record(index, of, self._site.row(index, of, rollout_id))
        return Response(line, media_type="text/plain; charset=utf-8")


def _timeline(index: RunIndex) -> list[list[float | None]]:
    """(step, end, waiting, training, publishing, all) of the last steps; times in seconds."""
    metrics = index.metrics
    names = ("rollout/wait_s", "time/train_s", "time/publish_s", "time/step_s")
    columns = [metrics.column(name)[-_TIMELINE_STEPS:] for name in names]
    steps = metrics.steps[-_TIMELINE_STEPS:]
    ends = metrics.times_s[-_TIMELINE_STEPS:]
    return [list(row) for row in zip(steps, ends, *columns, strict=True)]


def _engine(index: RunIndex) -> dict[str, Any]:
    """What samples, as far as the log tells."""
    metrics = index.metrics
    tokens, seconds = metrics.last("rollout/sampled_tokens_sum"), metrics.last("time/step_s")
    return {
        "version": index.version,
        "step": metrics.steps[-1] if metrics.steps else None,
        "step_ended_s": metrics.times_s[-1] if metrics.times_s else None,
        "tokens_per_s": tokens / seconds if tokens is not None and seconds else None,
        "step_s": seconds,
        "staleness": metrics.last("train/staleness_mean"),
        "sandbox": index.sandbox,
    }


def _recent(index: RunIndex) -> dict[str, Any]:
    """Episodes that ended in the last five minutes before the last event, and those waiting."""
    heard_s = index.heard_s or 0.0
    rows = index.episodes()
    ended = [row for row in rows if heard_s - row.ended_s <= _RECENT_S]
    waiting = [row for row in rows if row.step is None]
    outcomes: dict[str, int] = {}
    for row in ended:
        outcomes[row.outcome] = outcomes.get(row.outcome, 0) + 1
    return {
        "window_s": _RECENT_S,
        "ended": len(ended),
        "outcomes": outcomes,
        "waiting": len(waiting),
        "total": len(rows),
    }
