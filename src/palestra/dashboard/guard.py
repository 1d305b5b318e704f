"""What every answer carries and every request must satisfy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Guard:
    """Lets through reading requests that name this server, and labels every answer.

    Args:
        app: answers.
        hosts: names under which browsers may know us; empty: any. Pages of others that
            have their name point at this machine would read along otherwise.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = ()) -> None:
        self._app = app
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def labelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {name.lower() for name, _ in message["headers"]}
                extra = ((k.lower().encode(), v.encode()) for k, v in HEADERS.items())
                message["headers"] = [
                    *message["headers"],
                    *((name, value) for name, value in extra if name not in known),
                ]
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, labelled)
        else:
            await self._app(scope, receive, labelled)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("the dashboard only reads\n", status_code=405)
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        name = host.decode("latin-1").lower()
        bare = name.rpartition(":")[0] if not name.endswith("]") and ":" in name else name
        if self._hosts and bare not in self._hosts:
            return PlainTextResponse(
                "this server is not known under that name: use http://127.0.0.1\n", status_code=421
            )
        return None
