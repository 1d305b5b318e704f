from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException, Request, Response
from http_server import serving
from rollout_makers import make_episode, make_task, make_verdict

from palestra.config import SamplingSection
from palestra.errors import ConfigError, EnvironmentUnavailable, TaskError
from palestra.learning.rollouts.environment_client import EnvironmentClient
from palestra.records import EpisodeResult, Outcome, Timings
from palestra.wire import RunRequest, episode_to_wire


class Recorder:
    """An app that answers ``POST /run`` with what it is told and keeps the requests."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.app = FastAPI()
        self.app.post("/run")(self.run)
        self.app.get("/health")(self.health)

    async def run(self, body: dict[str, Any], request: Request) -> Any:
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def health(self) -> dict[str, str]:
        return {"status": "ok"}


def ours(episode: EpisodeResult) -> dict[str, Any]:
    return {
        "reward": episode.reward or 0.0,
        "instance_id": episode.instance_id,
        "responses_create_params": {},
        "messages": [],
        "response": {},
        "metadata": {},
        "info": {"exit_status": episode.exit_status},
        "mask_sample": episode.reward is None,
        "outcome": episode.outcome.value,
        "error": None,
        "patch": episode.patch,
        "submission": None,
        "timings": {},
        "episode": episode_to_wire(episode),
    }


def foreign(**changes: Any) -> dict[str, Any]:
    return {
        "reward": 1.0,
        "instance_id": "task-0",
        "responses_create_params": {},
        "response": {},
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": "a"},
            {"role": "assistant", "content": "b"},
        ],
        "metadata": {
            "eval_report": {
                "task-0": {
                    "resolved": True,
                    "patch_successfully_applied": True,
                    "tests_status": {"FAIL_TO_PASS": {"success": ["t::a"], "failure": []}},
                }
            }
        },
        "info": {
            "exit_status": "Submitted",
            "agent_metrics": {"turns": 5, "total_time": 9.5, "eval_time": 2.0},
        },
    } | changes


async def run(url: str, **options: Any) -> EpisodeResult:
    async with EnvironmentClient(url, **options) as client:
        return await client.run(
            make_task(),
            sglang_url="http://127.0.0.1:1/s/x/v1",
            sampling=SamplingSection(temperature=0.8, max_new_tokens=77),
            idempotency_key="key-1",
        )


async def test_an_episode_of_our_server_comes_back_whole() -> None:
    episode = make_episode(verdict=make_verdict(True), timings=Timings(total_s=1.5))
    server = Recorder(ours(episode))
    async with serving(server.app) as url:
        assert await run(url) == episode
    request = RunRequest.model_validate(server.bodies[0])
    assert request.sglang_url == "http://127.0.0.1:1/s/x/v1"
    assert request.sampling_params is not None
    assert request.sampling_params.max_new_tokens == 77
    assert request.responses_create_params.temperature == 0.8
    assert request.row()["FAIL_TO_PASS"] == ["t::a"]
    assert server.headers[0]["idempotency-key"] == "key-1"
    assert "authorization" not in server.headers[0]


@pytest.mark.parametrize(
    ("changes", "outcome", "reward"),
    [
        ({}, Outcome.SOLVED, 1.0),
        ({"reward": 0}, Outcome.UNSOLVED, 0.0),
        ({"info": {"exit_status": "LimitsExceeded"}}, Outcome.TRUNCATED, 1.0),
        ({"info": {"exit_status": "RolloutTruncated"}, "reward": 0.0}, Outcome.TRUNCATED, 0.0),
        ({"info": {"exit_status": "RuntimeError"}, "reward": 0.0}, Outcome.INFRA_ERROR, None),
        ({"mask_sample": True, "reward": 0.0}, Outcome.INFRA_ERROR, None),
    ],
)
async def test_a_foreign_server_is_understood(
    changes: dict[str, Any], outcome: Outcome, reward: float | None
) -> None:
    async with serving(Recorder(foreign(**changes)).app) as url:
        episode = await run(url)
    assert (episode.outcome, episode.reward) == (outcome, reward)


async def test_a_foreign_server_s_counts_and_times_are_kept() -> None:
    async with serving(Recorder(foreign()).app) as url:
        episode = await run(url)
    assert [m.role for m in episode.messages] == ["system", "user", "assistant", "assistant"]
    assert (episode.num_turns, episode.num_tool_calls) == (5, 2)
    assert episode.timings == Timings(eval_s=2.0, total_s=9.5)
    assert episode.verdict is not None
    assert episode.verdict.fail_to_pass.success == ("t::a",)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (foreign(reward=None), "reward is missing"),
        (foreign(reward=0.5), "the reward is 0.5"),
        (foreign(info={}), "info.exit_status is missing"),
        (foreign(info=3), "info is a int"),
        (foreign(instance_id="other"), "answered other when asked for task-0"),
        ({"episode": {}}, "no readable episode"),
        ([1], "answered a list"),
    ],
)
async def test_a_missing_reward_and_other_nonsense_are_never_a_zero(answer: Any, said: str) -> None:
    async with serving(Recorder(answer).app) as url:
        with pytest.raises(EnvironmentUnavailable, match=said) as caught:
            await run(url)
    assert url in str(caught.value)


async def test_a_refused_task_names_the_field() -> None:
    detail = [{"loc": ["body", "image"], "msg": "Field required", "type": "missing"}]
    async with serving(Recorder(HTTPException(422, detail)).app) as url:
        with pytest.raises(TaskError, match="cannot use task-0: image: Field required"):
            await run(url)


async def test_a_broken_server_is_unavailable() -> None:
    async with serving(Recorder(HTTPException(503, "no room")).app) as url:
        with pytest.raises(EnvironmentUnavailable, match="answered 503: no room"):
            await run(url)
    async with serving(Recorder(HTTPException(404, "Not Found")).app) as url:
        with pytest.raises(EnvironmentUnavailable, match="answered 404: Not Found"):
            await run(url)


async def test_nobody_there_is_unavailable_and_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    async with EnvironmentClient(url) as client:
        with pytest.raises(EnvironmentUnavailable, match=url):
            await client.health()


async def test_a_token_in_the_address_is_sent_and_never_shown() -> None:
    server = Recorder(HTTPException(500, "broken"))
    async with serving(server.app) as url:
        secret = url.replace("http://", "http://x:SECRET@")
        with pytest.raises(EnvironmentUnavailable) as caught:
            await run(secret)
        async with EnvironmentClient(secret) as client:
            await client.health()
            assert client.address == url
    assert "SECRET" not in str(caught.value)
    assert server.headers[0]["authorization"].startswith("Basic ")


async def test_a_token_of_its_own_is_sent_as_bearer() -> None:
    server = Recorder(foreign())
    async with serving(server.app) as url:
        await run(url, token="SECRET")
    assert server.headers[0]["authorization"] == "Bearer SECRET"


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_token_stops_the_run(status: int) -> None:
    async with serving(Recorder(HTTPException(status, "no")).app) as url:
        with pytest.raises(ConfigError, match="refuses our token"):
            await run(url)


@pytest.mark.parametrize("url", ["", "localhost:11000", "ftp://host", "http://"])
def test_an_address_must_be_one(url: str) -> None:
    with pytest.raises(ConfigError, match="environment server is not usable"):
        EnvironmentClient(url)


async def test_an_episode_may_take_its_time_but_not_for_ever() -> None:
    app = FastAPI()

    @app.post("/run")
    async def slow(body: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0.3)
        return foreign()

    async with serving(app) as url:
        assert (await run(url, timeout_s=20)).outcome is Outcome.SOLVED
        with pytest.raises(EnvironmentUnavailable, match=r"did not answer in 0\.05 s"):
            await run(url, timeout_s=0.05)


async def test_a_broken_connection_is_taken_up_again_under_the_same_key() -> None:
    keys: list[str] = []
    answer = b'{"reward": 1, "info": {"exit_status": "Submitted"}, "instance_id": "task-0"}'

    async def half_dead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        keys.append(head.split("idempotency-key: ")[1].split("\r\n")[0])
        if len(keys) > 1:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(half_dead, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        episode = await run(f"http://127.0.0.1:{port}")
    assert episode.outcome is Outcome.SOLVED
    assert keys == ["key-1", "key-1"]


async def test_an_answer_that_is_not_json_is_said() -> None:
    app = FastAPI()

    @app.post("/run")
    async def page(body: dict[str, Any]) -> Response:
        return Response("<html>", media_type="text/html")

    async with serving(app) as url:
        with pytest.raises(EnvironmentUnavailable, match="not JSON"):
            await run(url)
