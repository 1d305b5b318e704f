"""The token that requests must carry."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Iterable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

HOW = "send it as Authorization: Bearer TOKEN, or as the password of http://x:TOKEN@HOST:PORT"


class TokenGate:
    """Lets requests through that carry the token, as bearer or as basic-auth password.

    Plain ASGI, so that requests are refused before their body is read and a client's
    disconnect still reaches the application.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and not self._admits(scope["headers"]):
            has_any = any(name == b"authorization" for name, _ in scope["headers"])
            what = "this is not the server's token" if has_any else "the server wants its token"
            refusal = JSONResponse(
                {"detail": f"{what}: {HOW}"},
                status_code=401,
                headers={"WWW-Authenticate": 'Bearer, Basic realm="palestra"'},
            )
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _admits(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        given = next((value for name, value in headers if name == b"authorization"), b"")
        scheme, _, credentials = given.partition(b" ")
        credentials = credentials.strip()
        if scheme.lower() == b"basic":
            try:
                credentials = base64.b64decode(credentials, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != b"bearer":
            return False
        return hmac.compare_digest(credentials, self._token)
