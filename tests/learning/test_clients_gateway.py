from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from http_server import serving
from rollout_makers import make_episode, make_task, make_trace, until

from palestra.config import SamplingSection
from palestra.errors import GatewayError
from palestra.learning.rollouts.collector import RolloutCollector
from palestra.learning.rollouts.environment_client import EnvironmentClient
from palestra.learning.rollouts.gateway_client import GatewayClient
from palestra.records import Outcome
from palestra.wire import SessionRequest, trace_to_wire


class TinyGateway:
    """Sessions over real HTTP; each holds the same trace."""

    def __init__(self) -> None:
        self.requests: list[SessionRequest] = []
        self.live: set[str] = set()
        self.app = FastAPI()
        self.app.post("/sessions")(self.open)
        self.app.get("/sessions/{session_id}")(self.get)
        self.app.delete("/sessions/{session_id}")(self.delete)

    async def open(self, request: SessionRequest) -> dict[str, str]:
        self.requests.append(request)
        session_id = f"s{len(self.requests)}"
        self.live.add(session_id)
        return {"session_id": session_id, "base_url": f"http://gateway/s/{session_id}/v1"}

    async def get(self, session_id: str, take: bool = False) -> dict[str, Any]:
        if session_id not in self.live:
            raise HTTPException(404, f"no session {session_id}")
        if take:
            self.live.discard(session_id)
        return trace_to_wire(make_trace((0, 1), session_id))

    async def delete(self, session_id: str) -> dict[str, str]:
        if session_id not in self.live:
            raise HTTPException(404, f"no session {session_id}")
        self.live.discard(session_id)
        return {}


async def test_a_trace_is_taken_exactly_once() -> None:
    gateway = TinyGateway()
    async with serving(gateway.app) as url, GatewayClient(url) as client:
        session = await client.open(
            SamplingSection(temperature=0.7, max_new_tokens=9), max_total_tokens=50, seed=4
        )
        assert session.base_url.endswith(f"/s/{session.session_id}/v1")
        assert await client.take(session.session_id) == make_trace((0, 1), session.session_id)
        with pytest.raises(GatewayError, match=rf"{url}.*404: no session s1"):
            await client.take(session.session_id)
    assert gateway.requests == [
        SessionRequest(temperature=0.7, top_p=1.0, max_new_tokens=9, max_total_tokens=50, seed=4)
    ]


async def test_dropping_twice_is_no_error() -> None:
    gateway = TinyGateway()
    async with serving(gateway.app) as url, GatewayClient(url) as client:
        session = await client.open(SamplingSection())
        await client.drop(session.session_id)
        await client.drop(session.session_id)
        await client.drop("../odd id")
    assert gateway.live == set()


async def test_a_gateway_that_went_away_is_named() -> None:
    async with serving(FastAPI()) as url:
        pass
    async with GatewayClient(url) as client:
        for call in (client.open(SamplingSection()), client.take("s"), client.drop("s")):
            with pytest.raises(GatewayError, match=f"the gateway at {url} cannot be reached"):
                await call


@pytest.mark.parametrize("answer", [{"session_id": "s"}, {"turns": 3}])
async def test_nonsense_is_a_gateway_error(answer: dict[str, Any]) -> None:
    app = FastAPI()
    app.post("/sessions")(lambda: answer)
    app.get("/sessions/{session_id}")(lambda session_id: answer)
    async with serving(app) as url, GatewayClient(url) as client:
        with pytest.raises(GatewayError, match="no readable session"):
            await client.open(SamplingSection())
        with pytest.raises(GatewayError, match="no readable trace"):
            await client.take("s")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "too many sessions", "type": "LedgerFull"}}, "too many sessions"),
        ({"error": "broken"}, "broken"),
        ({"detail": [{"loc": ["body", "seed"], "msg": "no"}, {"msg": "two"}]}, "seed: no; two"),
        ([], r"\[\]"),
    ],
)
async def test_what_the_gateway_says_is_passed_on(body: Any, said: str) -> None:
    app = FastAPI()
    app.post("/sessions", status_code=503)(lambda: body)
    async with serving(app) as url, GatewayClient(url) as client:
        with pytest.raises(GatewayError, match=f"answered 503: {said}$"):
            await client.open(SamplingSection())


# --- both clients together ----------------------------------------------------


def environment_app(episodes: list[Any], urls: list[str], *, delay_s: float = 0.0) -> FastAPI:
    app = FastAPI()

    @app.post("/run")
    async def run(body: dict[str, Any]) -> dict[str, Any]:
        urls.append(body["sglang_url"])
        await asyncio.sleep(delay_s)
        answer = episodes.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {"reward": 1.0, "instance_id": "task-0", "info": {"exit_status": answer}}

    return app


async def test_a_rollout_over_real_http_with_a_retry() -> None:
    gateway, urls = TinyGateway(), list[str]()
    app = environment_app([HTTPException(500, "oops"), "SandboxDied", "Submitted"], urls)
    async with (
        serving(gateway.app) as gateway_url,
        serving(app) as environment_url,
        GatewayClient(gateway_url) as gateway_client,
        EnvironmentClient(environment_url) as environment_client,
    ):
        collector = RolloutCollector(
            environment_client,
            gateway_client,
            sampling=SamplingSection(),
            infra_retries=2,
            retry_delay_s=0.0,
            seed=7,
        )
        rollout = await collector.collect(make_task(), "run-0-0")
    assert rollout.rollout_id == "run-0-0"
    assert rollout.episode.outcome is Outcome.SOLVED
    assert rollout.trace == make_trace((0, 1), "s3")
    assert urls == [f"http://gateway/s/s{n}/v1" for n in (1, 2, 3)]
    assert gateway.live == set()
    seeds = [request.seed for request in gateway.requests]
    assert len(set(seeds)) == 3
    assert None not in seeds


async def test_a_gateway_that_is_gone_gives_an_infra_error_not_a_crash() -> None:
    async with serving(FastAPI()) as url:
        pass
    async with GatewayClient(url) as gateway, EnvironmentClient(url) as environment:
        collector = RolloutCollector(
            environment, gateway, sampling=SamplingSection(), infra_retries=1, retry_delay_s=0.0
        )
        rollout = await collector.collect(make_task(), "run-0-0")
    assert rollout.episode.outcome is Outcome.INFRA_ERROR
    assert rollout.episode.exit_status == "GatewayError"
    assert url in (rollout.episode.error or "")
    assert rollout.reward is None
    assert rollout.trace.turns == ()


async def test_cancelling_a_rollout_drops_its_session() -> None:
    gateway, urls = TinyGateway(), list[str]()
    app = environment_app([make_episode()], urls, delay_s=30)
    async with (
        serving(gateway.app) as gateway_url,
        serving(app) as environment_url,
        GatewayClient(gateway_url) as gateway_client,
        EnvironmentClient(environment_url) as environment_client,
    ):
        collector = RolloutCollector(environment_client, gateway_client, sampling=SamplingSection())
        collecting = asyncio.create_task(collector.collect(make_task(), "run-0-0"))
        await until(lambda: bool(urls))
        assert gateway.live == {"s1"}
        collecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await collecting
        assert gateway.live == set()
