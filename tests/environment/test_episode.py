"""Episodes: outcomes, failures by stage, time-outs, cancelling."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType

import pytest
from agent_toys import FIX, GOLD, SUBMIT, endpoint, make_task, mini, until

from palestra.config import EnvironmentSection
from palestra.environment.agents.fake_model import ScriptedModelServer, block
from palestra.environment.agents.gold import GoldAgent
from palestra.environment.agents.noop import NoopAgent
from palestra.environment.agents.protocol import Agent, AgentExit, AgentResult, ModelEndpoint
from palestra.environment.agents.scripted import ScriptedAgent
from palestra.environment.episode import EpisodeRunner
from palestra.environment.grading.fake import ScriptedGrader
from palestra.environment.grading.protocol import Grader
from palestra.environment.sandboxes.fake import FakeSandbox, FakeSandboxBackend
from palestra.environment.sandboxes.protocol import (
    Sandbox,
    SandboxBackend,
    SandboxLimits,
    SandboxSpec,
)
from palestra.errors import GradingError, ImageError, SandboxStartError
from palestra.events import MemoryEvents
from palestra.records import EpisodeResult, ExitStatus, Outcome, Task, Verdict

FIXED = "    return a + b"


def fixes(_: Task, patch: str) -> bool:
    return f"+{FIXED}" in patch


def runner(
    agent: Agent,
    *,
    backend: SandboxBackend | None = None,
    grader: Grader | None = None,
    events: MemoryEvents | None = None,
    **section: float,
) -> EpisodeRunner:
    return EpisodeRunner(
        backend or FakeSandboxBackend(),
        agent,
        grader or ScriptedGrader(fixes),
        EnvironmentSection(**section),
        SandboxLimits(),
        events=events,
    )


class BrokenAgent:
    """Does what it is told instead of working."""

    name = "broken"
    needs_model = False
    env: Mapping[str, str] = MappingProxyType({})

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    async def run(self, task: Task, sandbox: Sandbox, _: ModelEndpoint | None) -> AgentResult:
        if self._error is not None:
            raise self._error
        await asyncio.sleep(3600)
        raise AssertionError


async def run(agent: Agent, task: Task | None = None, **options: float) -> EpisodeResult:
    return await runner(agent, **options).run(task or make_task(), None)


# --- outcomes -------------------------------------------------------------------


async def test_gold_solves_and_noop_does_not() -> None:
    gold = await run(GoldAgent())
    assert (gold.outcome, gold.reward, gold.exit_status) == (Outcome.SOLVED, 1.0, "Submitted")
    assert gold.patch is not None
    assert f"+{FIXED}" in gold.patch
    assert gold.submission == GOLD
    noop = await run(NoopAgent())
    assert (noop.outcome, noop.reward, noop.patch) == (Outcome.UNSOLVED, 0.0, "")
    assert noop.verdict is not None


async def test_the_graded_patch_is_the_tree_not_what_was_handed_in() -> None:
    grader = ScriptedGrader(fixes)
    agent = ScriptedAgent(lambda _: [FIX, "git -c user.name=a -c user.email=b commit -qam done"])
    result = await runner(agent, grader=grader).run(make_task(), None)
    assert result.outcome is Outcome.SOLVED
    assert grader.graded == [("toy__calc-1", result.patch)]


@pytest.mark.parametrize(
    ("ends", "outcome", "status"),
    [
        (AgentExit.STEP_LIMIT, Outcome.TRUNCATED, ExitStatus.LIMITS_EXCEEDED),
        (AgentExit.TIME_LIMIT, Outcome.TRUNCATED, ExitStatus.LIMITS_EXCEEDED),
        (AgentExit.TOKEN_LIMIT, Outcome.TRUNCATED, ExitStatus.ROLLOUT_TRUNCATED),
        (AgentExit.COLLAPSED, Outcome.TRUNCATED, ExitStatus.COLLAPSE_CONTINUED),
    ],
)
async def test_a_truncated_episode_is_graded_as_it_stands(
    ends: AgentExit, outcome: Outcome, status: ExitStatus
) -> None:
    for commands, reward in (([FIX], 1.0), ([], 0.0)):
        result = await run(ScriptedAgent(lambda _, c=commands: c, ends=ends))  # type: ignore[misc]
        assert (result.outcome, result.exit_status, result.reward) == (outcome, status, reward)
        assert result.verdict is not None


async def test_a_malformed_episode_is_not_graded_and_worth_nothing() -> None:
    grader = ScriptedGrader(fixes)
    agent = ScriptedAgent(lambda _: [FIX], ends=AgentExit.MALFORMED)
    result = await runner(agent, grader=grader).run(make_task(), None)
    assert (result.outcome, result.reward) == (Outcome.MALFORMED, 0.0)
    assert result.exit_status == ExitStatus.LIMITS_EXCEEDED
    assert (result.patch, result.verdict, grader.graded) == (None, None, [])


async def test_a_tree_that_the_agent_broke_is_its_own_loss() -> None:
    result = await run(ScriptedAgent(lambda _: ["rm -rf .git"]))
    assert (result.outcome, result.reward, result.patch) == (Outcome.UNSOLVED, 0.0, None)
    assert result.error is not None
    assert result.error.startswith("UnreadableTree: ")


async def test_mini_solves_in_the_end_to_end_order_of_stages() -> None:
    stages: list[str] = []
    async with ScriptedModelServer([block("cat calc.py"), block(FIX), block(SUBMIT)]) as model:
        result = await runner(mini()).run(
            make_task(), endpoint(model.base_url), episode_id="e1", on_stage=stages.append
        )
    assert stages == ["image", "start", "agent", "diff", "grade"]
    assert (result.episode_id, result.outcome, result.num_turns) == ("e1", Outcome.SOLVED, 3)
    timings = result.timings
    assert timings.queue_s is None
    for seconds in (timings.start_s, timings.agent_s, timings.model_s, timings.env_s):
        assert seconds is not None
        assert seconds > 0
    assert timings.agent_s is not None
    assert timings.total_s is not None
    assert timings.total_s >= timings.agent_s


async def test_the_sandbox_gets_what_the_agent_wants_and_dies_before_grading() -> None:
    backend = FakeSandboxBackend()
    specs: list[SandboxSpec] = []

    class Watching(FakeSandboxBackend):
        def start(self, spec: SandboxSpec):  # type: ignore[no-untyped-def]
            specs.append(spec)
            return backend.start(spec)

    def graded(_: Task, __: str) -> bool:
        assert not backend.live
        return True

    async with ScriptedModelServer([block(SUBMIT)]) as model:
        agent = mini(prompt="swebench_backticks")
        result = await runner(agent, backend=Watching(), grader=ScriptedGrader(graded)).run(
            make_task(), endpoint(model.base_url)
        )
    assert result.outcome is Outcome.SOLVED, result.error
    assert specs[0].env["PAGER"] == "cat"


# --- failures by stage ----------------------------------------------------------


class NoSandbox(FakeSandboxBackend):
    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self._error = error

    @asynccontextmanager
    async def start(self, spec: SandboxSpec) -> AsyncIterator[Sandbox]:
        if self._error is not None:
            raise self._error
        await asyncio.sleep(3600)
        yield FakeSandbox.__new__(FakeSandbox)


class Refusing:
    def __init__(self, error: Exception | None) -> None:
        self._error = error

    async def grade(self, task: Task, patch: str) -> Verdict:
        if self._error is not None:
            raise self._error
        await asyncio.sleep(3600)
        raise AssertionError


@pytest.mark.parametrize("error", [ImageError("no such image"), SandboxStartError("no")])
async def test_a_failed_start_is_infrastructure(error: Exception) -> None:
    result = await runner(NoopAgent(), backend=NoSandbox(error)).run(make_task(), None)
    assert (result.outcome, result.reward) == (Outcome.INFRA_ERROR, None)
    assert result.exit_status == type(error).__name__
    assert result.error == f"{type(error).__name__}: {error}"
    timings = result.timings
    assert (timings.start_s, timings.agent_s, timings.eval_s) == (None, None, None)


async def test_a_failed_grading_keeps_the_patch() -> None:
    result = await runner(GoldAgent(), grader=Refusing(GradingError("bad log"))).run(
        make_task(), None
    )
    assert (result.outcome, result.exit_status) == (Outcome.INFRA_ERROR, "GradingError")
    assert result.patch
    assert result.verdict is None
    assert result.timings.eval_s is not None


async def test_a_gold_patch_that_does_not_apply_names_the_task() -> None:
    result = await run(GoldAgent(), make_task(gold_patch=GOLD.replace("a - b", "a * b")))
    assert (result.outcome, result.exit_status) == (Outcome.INFRA_ERROR, "GradingError")
    assert result.error is not None
    assert "toy__calc-1: its gold patch does not apply" in result.error


async def test_a_sandbox_that_dies_at_work_is_infrastructure() -> None:
    backend = FakeSandboxBackend()
    agent = ScriptedAgent(lambda _: ["sleep 60"])
    running = asyncio.create_task(runner(agent, backend=backend).run(make_task(), None))

    def at_work() -> bool:
        return bool(backend.live and backend.live[0]._running)

    await until(at_work, what="the command runs")
    await asyncio.sleep(0.2)
    backend.live[0].kill()
    result = await running
    assert (result.outcome, result.exit_status) == (Outcome.INFRA_ERROR, "SandboxDied")


async def test_every_stage_has_its_time_out_and_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    late = await runner(NoopAgent(), backend=NoSandbox(None), start_timeout_s=0.1).run(
        make_task(), None
    )
    assert late.exit_status == "SandboxStartError"
    monkeypatch.setattr("palestra.environment.episode.AGENT_GRACE_S", 0.1)
    monkeypatch.setattr("palestra.environment.episode.GRADING_GRACE_S", 0.1)
    stuck = await run(BrokenAgent(), episode_timeout_s=0.1)
    assert stuck.exit_status == "AgentTimeout"
    assert stuck.error is not None
    assert "did not end" in stuck.error
    endless = await runner(
        NoopAgent(), grader=Refusing(None), eval_timeout_s=0.1, start_timeout_s=3
    ).run(make_task(), None)
    assert (endless.exit_status, endless.patch) == ("GradingTimeout", "")


async def test_the_unexpected_is_infrastructure_and_leaves_its_traceback() -> None:
    events = MemoryEvents()
    agent = BrokenAgent(ZeroDivisionError("division by zero"))
    result = await runner(agent, events=events).run(make_task(), None, episode_id="e7")
    assert (result.outcome, result.exit_status) == (Outcome.INFRA_ERROR, "ZeroDivisionError")
    (event,) = events.of_kind("episode.unexpected")
    assert event.fields["episode_id"] == "e7"
    assert "raise self._error" in event.fields["traceback"]


async def test_a_time_out_of_somebody_else_is_not_taken_for_ours() -> None:
    result = await run(BrokenAgent(TimeoutError("inside")))
    assert result.exit_status == "TimeoutError"


async def test_cancelling_passes_through_and_leaves_nothing() -> None:
    backend = FakeSandboxBackend()
    agent = ScriptedAgent(lambda _: ["sleep 60"])
    running = asyncio.create_task(runner(agent, backend=backend).run(make_task(), None))
    await until(lambda: bool(backend.live), what="the sandbox is up")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not backend.live
