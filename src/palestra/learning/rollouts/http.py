"""What both HTTP clients share: address, credentials, and errors that name the address."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx
import orjson

from palestra.errors import ConfigError, InfraError
from palestra.keepalive import socket_options

CONNECT_TIMEOUT_S = 10.0
WRITE_TIMEOUT_S = 60.0
_AGAIN_S = 1.0  # between tries to connect, while there is patience


class Patience:
    """How long a server may be out of reach, for all requests to it.

    Args:
        outage_s: for one request, seconds from its first try.
        say: told once per outage, in one line.
    """

    def __init__(self, outage_s: float, say: Callable[[str], None]) -> None:
        self._outage_s = outage_s
        self._say = say
        self._has_said = False

    def lasts(self, waited_s: float) -> bool:
        """Whether a request that has tried for ``waited_s`` tries again."""
        return waited_s < self._outage_s

    def say_once(self, what: str) -> None:
        """Say that there is an outage, unless that was said of this one."""
        if not self._has_said:
            self._has_said = True
            self._say(f"{what}; trying again for {self._outage_s:g} s")

    def restore(self) -> None:
        """The outage, if there was one, is over."""
        self._has_said = False


class Peer:
    """One server that we speak JSON to.

    Args:
        base_url: its address; ``http://user:TOKEN@host`` is sent as basic auth.
        what: its name in errors ("environment server").
        error: makes the error of this boundary.
        token: sent as bearer, if given.
        timeout_s: seconds to wait for an answer.

    Raises:
        ConfigError: ``base_url`` is no HTTP address.
    """

    def __init__(
        self,
        base_url: str,
        *,
        what: str,
        error: Callable[[str], InfraError],
        token: str | None,
        timeout_s: float,
    ) -> None:
        url = _parse(base_url, what)
        # Credentials must not show in errors, so they leave the address here.
        bare = url.copy_with(username=None, password=None)
        auth = httpx.BasicAuth(url.username, url.password) if url.userinfo else None
        self.address = str(bare).rstrip("/")
        self._what = what
        self._error = error
        self._timeout_s = timeout_s
        self._client = httpx.AsyncClient(
            base_url=bare,
            auth=auth,
            headers={"Authorization": f"Bearer {token}"} if token else None,
            # A proxy for the internet has no business between the parts of a run.
            trust_env=False,
            transport=httpx.AsyncHTTPTransport(
                # No limit on connections: the scheduler bounds what is in flight.
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
                socket_options=socket_options(),
                trust_env=False,
            ),
            timeout=httpx.Timeout(
                timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s), write=WRITE_TIMEOUT_S
            ),
        )

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        headers: dict[str, str] | None = None,
        params: dict[str, str] | None = None,
        resends: int = 0,
        patience: Patience | None = None,
    ) -> httpx.Response:
        """Send one request; any answer but 401, 403 and 5xx is returned.

        Args:
            method: HTTP method.
            path: below the base address.
            body: JSON value, if any.
            headers: extra ones.
            params: of the query.
            resends: how often a request is sent again when its connection breaks; only
                for requests that are safe to repeat.
            patience: for a server that no connection can be made to; ``None``: none.

        Raises:
            ConfigError: the credentials are refused.
            InfraError: of this boundary.
        """
        content = None if body is None else orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS)
        sent = {"Content-Type": "application/json"} if content is not None else {}
        sent |= headers or {}
        for attempt in range(resends + 1):
            try:
                response = await self._connected(
                    patience, method, path, content=content, headers=sent, params=params
                )
                break
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as error:
                if attempt == resends:
                    raise self.failure(f"broke the connection: {_said(error)}") from error
            except httpx.ConnectTimeout as error:
                raise self.failure("cannot be reached: no answer to the connection") from error
            except httpx.TimeoutException as error:
                raise self.failure(f"did not answer in {self._timeout_s:g} s") from error
            except httpx.HTTPError as error:
                raise self.failure(f"cannot be reached: {_said(error)}") from error
        if response.status_code in (401, 403):
            raise ConfigError(f"the {self._what} at {self.address} refuses our token")
        if response.status_code >= 500:
            raise self.failure(f"answered {response.status_code}: {detail(response)}")
        return response

    async def _connected(
        self, patience: Patience | None, method: str, path: str, **request: Any
    ) -> httpx.Response:
        """Send a request, trying again while no connection can be made and patience lasts."""
        began_s = time.monotonic()
        while True:
            try:
                response = await self._client.request(method, path, **request)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                # Nothing was sent: any request may be tried again.
                if patience is None or not patience.lasts(time.monotonic() - began_s):
                    raise
                patience.say_once(
                    f"the {self._what} at {self.address} is out of reach: {_said(error)}"
                )
                await asyncio.sleep(_AGAIN_S)
            else:
                if patience is not None:
                    patience.restore()
                return response

    def failure(self, what_happened: str) -> InfraError:
        """Build the error of this boundary, naming server and address."""
        return self._error(f"the {self._what} at {self.address} {what_happened}")

    def json(self, response: httpx.Response) -> dict[str, Any]:
        """The object in a successful answer.

        Raises:
            InfraError: of this boundary; the answer is no success or no object.
        """
        if not response.is_success:
            raise self.failure(f"answered {response.status_code}: {detail(response)}")
        try:
            value = orjson.loads(response.content)
        except orjson.JSONDecodeError as error:
            raise self.failure(f"answered something that is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise self.failure(f"answered a {type(value).__name__} where an object belongs")
        return value

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()


def detail(response: httpx.Response) -> str:
    """What an error answer says, in one line.

    Reads FastAPI's ``detail`` and OpenAI's ``error.message``; else the start of the body.
    """
    try:
        body = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        body = None
    said: Any = None
    if isinstance(body, dict):
        error = body.get("error")
        said = body.get("detail") or (error.get("message") if isinstance(error, dict) else error)
    if isinstance(said, list):
        said = "; ".join(_field(item) for item in said)
    return " ".join(str(said or response.text).split())[:500] or "nothing"


def _field(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)
    where = ".".join(str(part) for part in item.get("loc", ()) if part != "body")
    return f"{where}: {item.get('msg', '?')}" if where else str(item.get("msg", item))


def _parse(base_url: str, what: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError):
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(
            f"the address of the {what} is not usable", hint="it looks like http://HOST:PORT"
        )
    return url


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
