"""The application: pages, their data, and what happens when something is not there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from importlib.resources import files

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from palestra.dashboard.data import data_routes
from palestra.dashboard.episode_view import UnreadableRecord
from palestra.dashboard.guard import Guard
from palestra.dashboard.library import UnknownRun
from palestra.dashboard.pages import page_routes
from palestra.dashboard.rendering import render
from palestra.dashboard.site import NothingThere, Site
from palestra.dashboard.why_pages import WhyPages
from palestra.environment.server.auth import TokenGate
from palestra.errors import PalestraError

_MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


def create_app(site: Site, *, token: str | None = None, hosts: Iterable[str] = ()) -> FastAPI:
    """The application that shows ``site``.

    Args:
        site: what there is to show.
        token: every request must carry it; ``None``: none needs to.
        hosts: names under which browsers may ask; empty: any.
    """
    app = FastAPI(title="Palestra", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(page_routes(site))
    app.include_router(data_routes(site))
    app.include_router(WhyPages(site).router)
    statics = _statics()

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        found = statics.get(name)
        if found is None:
            raise HTTPException(404)
        content, media_type = found
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    for kind, status in (
        (UnknownRun, 404),
        (NothingThere, 404),
        (UnreadableRecord, 422),
        (PalestraError, 500),
        (HTTPException, None),
    ):
        app.add_exception_handler(kind, _told(status))
    if token is not None:
        app.add_middleware(TokenGate, token=token)
    app.add_middleware(Guard, hosts=hosts)
    return app


def _told(status: int | None) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def tell(request: Request, error: Exception) -> Response:
        code = status if status is not None else int(getattr(error, "status_code", 500))
        words = {UnknownRun: f"There is no run {error}.", HTTPException: "There is no such page."}
        told = words.get(type(error), str(error))
        if request.url.path.endswith(".json"):
            return Response(told, status_code=code, media_type="text/plain; charset=utf-8")
        page = render("trouble.html.j2", told=told, run=None, tab=None, is_live=False)
        return Response(page, status_code=code, media_type="text/html; charset=utf-8")

    return tell


def _statics() -> dict[str, tuple[bytes, str]]:
    """Every file that pages use, in memory: there are a few, and none can be asked for beside."""
    folder = files("palestra.dashboard").joinpath("static")
    return {
        file.name: (file.read_bytes(), _MEDIA_TYPES[file.name.rpartition(".")[2]])
        for file in folder.iterdir()
        if file.name.rpartition(".")[2] in _MEDIA_TYPES
    }
