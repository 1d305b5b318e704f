"""Client of the gateway's sessions and ledger."""

from __future__ import annotations

from types import TracebackType
from urllib.parse import quote

from pydantic import ValidationError

from palestra.config import SamplingSection
from palestra.errors import GatewayError
from palestra.learning.rollouts.http import Peer
from palestra.learning.rollouts.protocol import Session
from palestra.records import Trace
from palestra.wire import SessionRequest, SessionResponse, trace_from_wire


class GatewayClient:
    """Opens sessions on the gateway at ``base_url`` and takes their traces.

    Args:
        base_url: ``http://HOST:PORT``, or ``http://x:TOKEN@HOST:PORT``.
        token: sent as bearer, if the address has none.
        timeout_s: seconds to wait for an answer; none of these calls waits for the model.

    Raises:
        ConfigError: ``base_url`` is no HTTP address.
    """

    def __init__(self, base_url: str, token: str | None = None, *, timeout_s: float = 60.0) -> None:
        self._peer = Peer(
            base_url, what="gateway", error=GatewayError, token=token, timeout_s=timeout_s
        )

    @property
    def address(self) -> str:
        """Where the gateway is, without credentials."""
        return self._peer.address

    async def open(
        self,
        sampling: SamplingSection,
        *,
        max_total_tokens: int | None = None,
        seed: int | None = None,
    ) -> Session:
        """Open a session whose budget overrides what the agent asks for.

        Args:
            sampling: of every turn in the session.
            max_total_tokens: most ids that the whole conversation may have.
            seed: of the session's samples.

        Raises:
            GatewayError: the gateway cannot be reached or refuses.
        """
        request = SessionRequest(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_new_tokens=sampling.max_new_tokens,
            max_total_tokens=max_total_tokens,
            seed=seed,
        )
        response = await self._peer.request(
            "POST", "/sessions", body=request.model_dump(exclude_none=True)
        )
        try:
            opened = SessionResponse.model_validate(self._peer.json(response))
        except ValidationError as error:
            raise self._peer.failure("answered no readable session") from error
        return Session(session_id=opened.session_id, base_url=opened.base_url)

    async def take(self, session_id: str) -> Trace:
        """Take the trace of a session, which ends the session; works exactly once.

        Raises:
            GatewayError: the session is unknown, or the gateway cannot be reached.
        """
        # Never sent twice: if the first answer was lost, the trace is gone with it.
        response = await self._peer.request("GET", _path(session_id), params={"take": "true"})
        try:
            return trace_from_wire(self._peer.json(response))
        except ValidationError as error:
            raise self._peer.failure(f"answered no readable trace for {session_id}") from error

    async def drop(self, session_id: str) -> None:
        """End a session and forget its trace; an unknown one is no error.

        Raises:
            GatewayError: the gateway cannot be reached or refuses.
        """
        response = await self._peer.request("DELETE", _path(session_id), resends=1)
        if not response.is_success and response.status_code != 404:
            self._peer.json(response)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._peer.aclose()

    async def __aenter__(self) -> GatewayClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()


def _path(session_id: str) -> str:
    return f"/sessions/{quote(session_id, safe='')}"
