"""The environment server over real HTTP: bodies, repeats, queue, disconnects, tokens."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from agent_toys import FIX, SUBMIT, make_task, mini, until

from palestra.config import EnvironmentSection
from palestra.environment.agents.fake_model import ScriptedModelServer, ScriptedReply, block
from palestra.environment.agents.gold import GoldAgent
from palestra.environment.agents.prompt_set import load_prompt_set
from palestra.environment.agents.protocol import Agent
from palestra.environment.agents.scripted import ScriptedAgent
from palestra.environment.episode import EpisodeRunner
from palestra.environment.grading.fake import ScriptedGrader
from palestra.environment.sandboxes.fake import FakeSandboxBackend
from palestra.environment.sandboxes.protocol import SandboxLimits
from palestra.environment.server.endpoints import PolicyDefaults
from palestra.environment.server.repeats import Repeats
from palestra.environment.server.serve import serve
from palestra.environment.server.service import EpisodeService
from palestra.errors import ConfigError, HostError, ImageError
from palestra.records import Task
from palestra.tasks.rows import task_to_row
from palestra.wire import RunResponse, episode_from_wire

STATUSES = {"Submitted", "RolloutTruncated", "LimitsExceeded", "CollapseContinued"}


@dataclass
class Served:
    url: str
    http: httpx.AsyncClient
    service: EpisodeService
    backend: FakeSandboxBackend
    stop: asyncio.Event
    serving: asyncio.Task[None]

    async def run(self, body: dict[str, Any], key: str | None = None) -> httpx.Response:
        headers = {"Idempotency-Key": key} if key else {}
        return await self.http.post("/run", json=body, headers=headers)

    async def status(self) -> dict[str, Any]:
        return dict((await self.http.get("/status")).json())


@asynccontextmanager
async def served(
    agent: Agent,
    *,
    grader: ScriptedGrader | None = None,
    policy: PolicyDefaults | None = None,
    tasks: Sequence[Task] = (),
    token: str | None = None,
    auth: str = "",
    grace_s: float = 0.3,
    **section: Any,
) -> AsyncIterator[Served]:
    backend = FakeSandboxBackend()
    settings = EnvironmentSection(**section)
    grader = grader or ScriptedGrader(lambda _, patch: "+    return a + b" in patch)
    runner = EpisodeRunner(backend, agent, grader, settings, SandboxLimits())
    service = EpisodeService(
        runner, settings, policy=policy, tasks=tasks, repeats=Repeats(grace_s=grace_s)
    )
    stop = asyncio.Event()
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(
        serve(service, host="127.0.0.1", port=0, token=token, on_ready=ready.set_result, stop=stop)
    )
    await asyncio.wait({ready, serving}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        await serving
    base = ready.result().replace("://", f"://{auth}")
    async with httpx.AsyncClient(base_url=base, timeout=30, trust_env=False) as http:
        yield Served(ready.result(), http, service, backend, stop, serving)
        stop.set()
    if not serving.cancelled():
        await asyncio.wait_for(serving, 15)
    assert not backend.live, "a sandbox is left behind"


def body(task: Task | None = None, **fields: Any) -> dict[str, Any]:
    return {**task_to_row(task or make_task()), "responses_create_params": {"input": []}, **fields}


# --- answers --------------------------------------------------------------------


async def test_an_episode_over_http() -> None:
    async with (
        ScriptedModelServer([block("cat calc.py"), block(FIX), block(SUBMIT)]) as model,
        served(mini()) as server,
    ):
        params = {"input": [], "temperature": 0.5, "metadata": {"a": "b"}}
        sampling = {"temperature": 0.7, "max_new_tokens": 64, "stop_token_ids": [7], "top_k": 5}
        response = await server.run(
            body(
                sglang_url=model.base_url, sampling_params=sampling, responses_create_params=params
            )
        )
        status = await server.status()
    assert response.status_code == 200, response.text
    answer = RunResponse.model_validate(response.json())
    assert (answer.reward, answer.mask_sample, answer.outcome) == (1.0, False, "solved")
    assert answer.instance_id == "toy__calc-1"
    assert answer.responses_create_params == params
    assert [m["role"] for m in answer.messages] == ["system", *["user", "assistant"] * 3]
    report = answer.metadata["eval_report"]["toy__calc-1"]
    assert report["resolved"] is True
    assert report["tests_status"]["FAIL_TO_PASS"]["success"] == ["test_calc.py::test_add"]
    assert answer.info["exit_status"] == "Submitted"
    assert answer.patch is not None
    assert "+    return a + b" in answer.patch
    metrics = answer.info["agent_metrics"]
    assert (metrics["turns"], metrics["tool_calls"]) == (3, 3)
    assert metrics["total_time"] >= metrics["model_query_time_sum"] > 0
    assert metrics["time_per_turn"] == pytest.approx(metrics["agent_run_time"] / 3)
    assert answer.timings["queue_s"] >= 0
    assert episode_from_wire(answer.episode).outcome == "solved"
    sent = model.requests[0]
    assert (sent["temperature"], sent["max_tokens"], sent["top_k"]) == (0.7, 64, 5)
    assert sent["stop_token_ids"] == [7]
    assert "max_new_tokens" not in sent
    assert "prompt_token_ids" not in json.dumps(answer.response)
    assert answer.response["object"] == "response"
    assert [i["role"] for i in answer.response["output"]] == ["assistant", "user"] * 2 + [
        "assistant"
    ]
    assert status["totals"] == {"solved": 1}


async def test_metrics_count_what_ended_and_what_lives() -> None:
    async with served(GoldAgent()) as server:
        before = (await server.http.get("/metrics")).text
        await server.run(body())
        page = await server.http.get("/metrics")
    lines = page.text.splitlines()
    assert 'palestra_episodes_total{outcome="solved"} 0.0' in before.splitlines()
    assert page.headers["content-type"].startswith("text/plain; version=")
    assert 'palestra_episodes_total{outcome="solved"} 1.0' in lines
    assert 'palestra_episodes_total{outcome="infra_error"} 0.0' in lines
    assert 'palestra_stage_seconds_count{stage="start"} 1.0' in lines
    assert 'palestra_stage_seconds_count{stage="eval"} 1.0' in lines
    assert not any('stage="model"' in line for line in lines), "an absent time is not 0"
    assert any(line.startswith("palestra_concurrency ") for line in lines)


async def test_metrics_show_where_episodes_are() -> None:
    async with served(ScriptedAgent(lambda _: ["sleep 0.5"]), concurrency=1) as server:
        running = [asyncio.create_task(server.run(body(), f"k{n}")) for n in range(3)]
        await until(
            lambda: server.service.status()["stages"] == {"agent": 1, "queued": 2},
            what="one is at work and two wait",
        )
        lines = (await server.http.get("/metrics")).text.splitlines()
        await asyncio.gather(*running)
    assert 'palestra_episodes_live{stage="queued"} 2.0' in lines
    assert 'palestra_episodes_live{stage="agent"} 1.0' in lines


async def test_a_configured_endpoint_and_a_task_by_id() -> None:
    async with ScriptedModelServer([block(SUBMIT)]) as model:
        policy = PolicyDefaults(base_url=model.base_url, api_key="secret", model_name="qwen")
        async with served(mini(), policy=policy, tasks=[make_task()]) as server:
            named = {"instance_id": "toy__calc-1", "subset": "gym", "split": "train"}
            response = await server.run(
                named
                | {"responses_create_params": {"input": [], "temperature": 0.25, "top_p": 0.5}}
            )
            unknown = await server.run(named | {"instance_id": "toy__calc-2"})
            await server.run(body(sglang_url=model.base_url))
    assert (response.json()["outcome"], response.json()["reward"]) == ("unsolved", 0.0)
    assert model.requests[0]["model"] == "qwen"
    assert (model.requests[0]["temperature"], model.requests[0]["top_p"]) == (0.25, 0.5)
    assert model.headers[0]["authorization"] == "Bearer secret"
    assert "authorization" not in model.headers[1], "our key goes to our endpoint only"
    assert unknown.status_code == 422
    assert unknown.json()["detail"][0]["loc"] == ["body", "instance_id"]


async def test_token_fields_are_relayed_when_asked_for() -> None:
    def reply(text: str, number: int) -> ScriptedReply:
        logprobs = {"content": [{"token": "x", "logprob": -0.5 * number}]}
        choice = {"token_ids": [number], "logprobs": logprobs}
        return ScriptedReply(text=text, body={"prompt_token_ids": [1, 2]}, choice=choice)

    replies = [reply("no block", 1), reply(block("true"), 2), reply(block(SUBMIT), 3)]
    async with ScriptedModelServer(replies) as model, served(mini()) as server:
        answer = (await server.run(body(sglang_url=model.base_url, return_token_ids=True))).json()
    assert model.requests[0]["return_token_ids"] is True
    said = [i for i in answer["response"]["output"] if i.get("role") == "assistant"]
    assert [i["generation_token_ids"] for i in said] == [[1], [2], [3]]
    assert [i["generation_log_probs"] for i in said] == [[-0.5], [-1.0], [-1.5]]
    assert said[0]["prompt_token_ids"] == [1, 2]


async def test_tool_calls_are_function_calls_of_the_response(tmp_path: Path) -> None:
    # Mini's own set without BASH_ENV: the fake sandbox would read this machine's .bashrc.
    whole = load_prompt_set("swebench")
    prompt = tmp_path / "tools.yaml"
    prompt.write_text(
        f"agent: {{system_template: use tools, instance_template: '{{{{task}}}}'}}\n"
        f"model: {json.dumps({'observation_template': whole.observation_template})}\n"
    )
    replies = [ScriptedReply(commands=("pwd",)), ScriptedReply(text="done", commands=(SUBMIT,))]
    async with ScriptedModelServer(replies) as model, served(mini(prompt=str(prompt))) as server:
        answer = (await server.run(body(sglang_url=model.base_url))).json()
    kinds = [item["type"] for item in answer["response"]["output"]]
    assert kinds == ["function_call", "function_call_output", "message", "function_call"]
    assert answer["messages"][-1]["tool_calls"][0]["function"]["name"] == "bash"


@pytest.mark.parametrize(
    ("reply", "status", "outcome"),
    [
        ("no block", "LimitsExceeded", "malformed"),
        (block("true"), "LimitsExceeded", "truncated"),
        (
            ScriptedReply(status=400, body={"error": {"code": "context_length_exceeded"}}),
            "RolloutTruncated",
            "truncated",
        ),
    ],
)
async def test_every_trainable_end_has_a_status_that_miles_trains_on(
    reply: str | ScriptedReply, status: str, outcome: str
) -> None:
    async with ScriptedModelServer([reply]) as model, served(mini(step_limit=5)) as server:
        answer = (await server.run(body(sglang_url=model.base_url))).json()
    assert (answer["info"]["exit_status"], answer["outcome"]) == (status, outcome)
    assert status in STATUSES
    assert (answer["reward"], answer["mask_sample"]) == (0.0, False)


async def test_an_infra_error_is_an_answer_that_nobody_trains_on() -> None:
    def broken(*_: Any) -> bool:
        raise ImageError("no such image")

    async with served(GoldAgent(), grader=ScriptedGrader(broken)) as server:
        response = await server.run(body())
    answer = response.json()
    assert response.status_code == 200
    assert (answer["reward"], answer["mask_sample"]) == (0.0, True)
    assert (answer["outcome"], answer["info"]["exit_status"]) == ("infra_error", "ImageError")
    assert answer["error"] == "ImageError: no such image"
    assert "turns" not in answer["info"]["agent_metrics"]
    assert answer["metadata"] == {}


# --- malformed requests ---------------------------------------------------------


MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"instance_id": ""}, "instance_id"),
    ({"sampling_params": {"temperature": -1}}, "temperature"),
    ({"sampling_params": {"max_new_tokens": "many"}}, "max_new_tokens"),
    ({"responses_create_params": []}, "responses_create_params"),
    ({"FAIL_TO_PASS": "not json"}, "FAIL_TO_PASS"),
    ({"FAIL_TO_PASS": []}, "instance_id"),
    ({"eval_script": 5}, "eval_script"),
    ({"sglang_url": "http://169.254.169.254/v1"}, "sglang_url"),
    ({"sglang_url": "http://8.8.8.8/v1"}, "sglang_url"),
    ({"sglang_url": "http://127.0.0.1:1"}, "sglang_url"),
    ({"sglang_url": None}, "sglang_url"),
]


async def test_a_policy_whose_name_nobody_knows_is_trouble_and_no_bad_request() -> None:
    async with served(mini()) as server:
        response = await server.run(body(sglang_url="http://no-such-host.invalid:1/v1"))
        assert response.status_code == 200, response.text
        answer = response.json()
        assert (answer["outcome"], answer["mask_sample"]) == ("infra_error", True)
        assert answer["info"]["exit_status"] == "ModelUnavailable"
        assert "no-such-host.invalid" in answer["error"]
        assert (await server.status())["episodes"] == []


async def test_a_malformed_request_names_the_field() -> None:
    async with served(mini()) as server:
        for change, field in MALFORMED:
            response = await server.run(body(sglang_url="http://127.0.0.1:1/v1") | change)
            assert response.status_code == 422, (change, response.text)
            assert field in response.json()["detail"][0]["loc"], (change, response.text)
        assert (await server.status())["episodes"] == []
        assert server.backend.num_started == 0


async def test_a_body_that_is_no_request_is_a_422() -> None:
    async with served(GoldAgent()) as server:
        for content in (b"", b"{", b"[]", b'{"instance_id": 5}', b"\xff"):
            response = await server.http.post("/run", content=content)
            assert response.status_code == 422, content
            assert response.json()["detail"][0]["loc"][0] == "body", content


# --- repeats, queue, disconnects ------------------------------------------------


async def test_a_repeat_gets_the_first_answer_and_siblings_do_not() -> None:
    async with served(GoldAgent()) as server:
        first = await server.run(body(), "k1")
        again = await server.run(body(), "k1")
        other = await server.run(body(), "k2")
        plain = [await server.run(body()) for _ in range(2)]
        wrong = await server.run(body(make_task("toy__calc-9")), "k1")
        assert server.backend.num_started == 4
    assert again.content == first.content
    ids = {r.json()["episode"]["episode_id"] for r in (first, other, *plain)}
    assert len(ids) == 4
    assert wrong.status_code == 422
    assert "Idempotency-Key" in wrong.json()["detail"][0]["loc"]


async def test_a_repeat_waits_for_the_episode_that_runs() -> None:
    agent = ScriptedAgent(lambda _: ["sleep 1", FIX])
    async with served(agent) as server:
        answers = await asyncio.gather(*[server.run(body(), "same") for _ in range(3)])
        assert server.backend.num_started == 1
    assert len({a.content for a in answers}) == 1
    assert answers[0].json()["reward"] == 1.0


async def test_a_client_that_goes_away_cancels_its_episode() -> None:
    for key in (None, "k"):
        async with served(ScriptedAgent(lambda _: ["sleep 60"])) as server:
            request = asyncio.create_task(server.run(body(), key))
            await until(lambda s=server: bool(s.backend.live), what="the sandbox is up")
            request.cancel()
            await until(
                lambda s=server: not s.backend.live and not s.service.status()["episodes"],
                what="everything is freed",
                timeout_s=5,
            )


async def test_a_repeat_keeps_the_episode_of_a_client_that_went_away() -> None:
    async with served(ScriptedAgent(lambda _: ["sleep 2", FIX]), grace_s=1.0) as server:
        request = asyncio.create_task(server.run(body(), "k"))
        await until(lambda: bool(server.backend.live), what="the sandbox is up")
        request.cancel()
        await asyncio.sleep(0.2)  # the server has seen it
        answer = await server.run(body(), "k")
        assert server.backend.num_started == 1
    assert answer.json()["reward"] == 1.0


async def test_the_queue_is_first_come_first_served() -> None:
    order: list[str] = []

    def commands(task: Task) -> list[str]:
        order.append(task.instance_id)
        return ["sleep 0.2"]

    async with served(ScriptedAgent(commands), concurrency=2) as server:
        requests = []
        for number in range(6):
            task = make_task(f"toy__calc-{number}")
            requests.append(asyncio.create_task(server.run(body(task))))
            await until(
                lambda n=number, s=server: (
                    len(s.service.status()["episodes"]) == n + 1 or len(order) >= 1
                ),
                what="it is listed",
            )
        await until(lambda: len(server.backend.live) == 2, what="two are at work")
        status = await server.status()
        assert status["concurrency"] == 2
        assert status["stages"].get("queued", 0) == status["queue_length"]
        assert {"id", "instance_id", "stage", "seconds"} <= set(status["episodes"][0])
        waited = [(await r).json()["timings"]["queue_s"] for r in requests]
        assert (await server.status())["totals"] == {"unsolved": 6}
    assert order == [f"toy__calc-{number}" for number in range(6)]
    assert waited[-1] > waited[0]


# --- tokens, addresses, stopping ------------------------------------------------


async def test_the_token_as_bearer_or_as_password() -> None:
    async with served(GoldAgent(), token="s3cret") as server:
        assert (await server.http.get("/health")).status_code == 401
        assert (await server.run(body())).status_code == 401
        for auth in (("x", "wrong"), ("s3cret", "")):
            assert (await server.http.get("/health", auth=auth)).status_code == 401
        for header in ("Bearer wrong", "Basic !!!", "s3cret", "Bearer"):
            headers = {"Authorization": header}
            assert (await server.http.get("/health", headers=headers)).status_code == 401
        bearer = {"Authorization": "Bearer s3cret"}
        assert (await server.http.get("/health", headers=bearer)).json()["status"] == "ok"
        assert (await server.http.get("/health", auth=("x", "s3cret"))).status_code == 200
    async with served(GoldAgent(), token="s3cret", auth="x:s3cret@") as server:
        assert (await server.run(body())).json()["reward"] == 1.0


async def test_gyms_client_finds_its_agent() -> None:
    async with served(GoldAgent()) as server:
        text = (await server.http.get("/global_config_dict_yaml")).content.decode()
    config = json.loads(json.loads(text))
    (agent,) = [
        part["responses_api_agents"]["mini_swe_agent"]
        for part in config.values()
        if isinstance(part, dict)
    ]
    assert f"http://{agent['host']}:{agent['port']}" == server.url
    assert config["policy_model_name"] == "policy"


async def start(host: str, port: int, token: str | None = None) -> None:
    runner = EpisodeRunner(
        FakeSandboxBackend(),
        GoldAgent(),
        ScriptedGrader(lambda *_: True),
        EnvironmentSection(),
        SandboxLimits(),
    )
    stop = asyncio.Event()
    stop.set()
    service = EpisodeService(runner, EnvironmentSection())
    await serve(service, host=host, port=port, token=token, on_ready=lambda _: None, stop=stop)


async def test_where_a_server_may_listen() -> None:
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"):
        for token in (None, ""):
            with pytest.raises(ConfigError, match="token"):
                await start(host, 0, token)
    await start("0.0.0.0", 0, "t")
    await start("localhost", 0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(HostError, match=rf"{port}.*taken"):
            await start("127.0.0.1", port)
    with pytest.raises(HostError, match="no such address"):
        await start("203.0.113.7", 0, "t")


async def test_stopping_lets_work_end_and_gives_up_the_queue() -> None:
    async with served(ScriptedAgent(lambda _: ["sleep 1", FIX]), concurrency=1) as server:
        working = asyncio.create_task(server.run(body()))
        await until(lambda: bool(server.backend.live), what="one is at work")
        queued = asyncio.create_task(server.run(body()))
        await until(lambda: len(server.service.status()["episodes"]) == 2, what="one waits")
        server.stop.set()
        assert (await queued).status_code == 503
        assert (await working).json()["reward"] == 1.0
        await asyncio.wait_for(asyncio.shield(server.serving), 10)
        with pytest.raises(httpx.ConnectError):
            await server.run(body())


async def test_cancelling_the_server_cancels_its_episodes() -> None:
    async with served(ScriptedAgent(lambda _: ["sleep 60"])) as server:
        working = asyncio.create_task(server.run(body()))
        await until(lambda: bool(server.backend.live), what="one is at work")
        server.serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await server.serving
        assert not server.backend.live
        assert (await working).status_code == 503
