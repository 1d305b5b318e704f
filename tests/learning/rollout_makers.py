"""Small records for the tests of rollouts and loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from palestra.config import RolloutsSection, SamplingSection
from palestra.learning.rollouts.collector import RolloutCollector
from palestra.learning.rollouts.fake import EpisodeScript, FakeEnvironment, FakeGateway
from palestra.learning.rollouts.scheduler import RolloutScheduler, SchedulerState
from palestra.learning.rollouts.task_order import TaskOrder
from palestra.records import (
    EpisodeResult,
    FinishReason,
    Group,
    Message,
    Outcome,
    Rollout,
    Segment,
    Task,
    TestSplit,
    Timings,
    Trace,
    Turn,
    Verdict,
)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something that has no event of its own has come true."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def make_task(number: int | str = 0) -> Task:
    return Task(
        instance_id=f"task-{number}",
        repo="owner/repo",
        base_commit="0" * 40,
        problem_statement="fix it",
        image="image",
        fail_to_pass=("t::a",),
        pass_to_pass=(),
        gold_patch="",
        test_patch="",
        eval_script="true",
        log_parser="pytest",
    )


def make_tasks(count: int) -> list[Task]:
    return [make_task(number) for number in range(count)]


def make_trace(versions: Sequence[int] = (0,), session_id: str = "s") -> Trace:
    turns = tuple(
        Turn(
            index=i,
            parent=i - 1 if i else None,
            context_ids=(1, 2),
            segments=(Segment(ids=(3, 4), logprobs=(-0.5, -0.25), policy_version=version),),
            finish_reason=FinishReason.STOP,
            temperature=1.0,
            duration_s=0.1,
        )
        for i, version in enumerate(versions)
    )
    return Trace(session_id=session_id, turns=turns)


def make_episode(outcome: Outcome = Outcome.SOLVED, **changes: Any) -> EpisodeResult:
    fields: dict[str, Any] = {
        "episode_id": "e",
        "instance_id": "task-0",
        "outcome": outcome,
        "exit_status": "Submitted",
        "messages": (Message(role="assistant", content="ls"),),
        "patch": "",
        "submission": None,
        "verdict": None,
        "error": None,
        "num_turns": 1,
        "num_tool_calls": 1,
        "timings": Timings(),
    }
    return EpisodeResult(**(fields | changes))


def make_verdict(resolved: bool) -> Verdict:
    return Verdict(
        resolved=resolved,
        patch_applied=True,
        fail_to_pass=TestSplit(success=("t::a",) if resolved else (), failure=()),
        pass_to_pass=TestSplit(success=(), failure=()),
        statuses={"t::a": "PASSED" if resolved else "FAILED"},
        log="log",
        duration_s=0.5,
    )


def make_group(
    outcomes: Sequence[Outcome], *, versions: Sequence[int] = (0,), index: int = 0
) -> Group:
    return Group(
        group_id=f"run-{index}",
        instance_id="task-0",
        task_index=index,
        rollouts=tuple(
            Rollout(
                rollout_id=f"run-{index}-{number}",
                episode=make_episode(outcome),
                trace=make_trace(versions),
            )
            for number, outcome in enumerate(outcomes)
        ),
    )


def make_scheduler(
    script: EpisodeScript,
    *,
    gateway: FakeGateway | None = None,
    num_tasks: int = 1000,
    concurrency: int = 1000,
    infra_retries: int = 0,
    state: SchedulerState | None = None,
    observer: Any = None,
    events: Any = None,
    **section: Any,
) -> tuple[RolloutScheduler, FakeGateway, FakeEnvironment]:
    """A scheduler over fakes; ``section`` are keys of the recipe's rollouts section."""
    gateway = gateway or FakeGateway()
    environment = FakeEnvironment(gateway, script)
    state = state or SchedulerState()
    scheduler = RolloutScheduler(
        collector=RolloutCollector(
            environment,
            gateway,
            sampling=SamplingSection(),
            infra_retries=infra_retries,
            retry_delay_s=0.0,
        ),
        order=TaskOrder(
            make_tasks(num_tasks),
            seed=0,
            shuffle=False,
            position=state.position,
            quarantined=state.quarantined,
        ),
        pending=state.pending,
        section=RolloutsSection(**({"groups_per_step": 2, "group_size": 2} | section)),
        run="run",
        concurrency=concurrency,
        observer=observer,
        events=events,
    )
    return scheduler, gateway, environment
