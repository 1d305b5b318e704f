"""Reads the answer of a server that speaks Gym's protocol but not our records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from palestra.records import (
    EpisodeResult,
    ExitStatus,
    Outcome,
    TestSplit,
    Timings,
    Verdict,
)
from palestra.wire import message_from_wire

_TRUNCATED = (
    ExitStatus.ROLLOUT_TRUNCATED,
    ExitStatus.LIMITS_EXCEEDED,
    ExitStatus.COLLAPSE_CONTINUED,
)


def episode_from_foreign(
    answer: Mapping[str, Any], *, instance_id: str, episode_id: str
) -> EpisodeResult:
    """Build an episode from ``reward``, ``info``, ``messages``, ``metadata`` and ``mask_sample``.

    An exit status that Miles' hook does not know means an aborted episode, here as there.
    The turns are the assistant's messages where the server does not count them.

    Raises:
        ValueError: a field that the protocol promises is missing or of another type, or
            the reward is neither 0 nor 1.
    """
    info = _mapping(answer, "info")
    exit_status = info.get("exit_status")
    if not isinstance(exit_status, str):
        raise ValueError("info.exit_status is missing")
    resolved = _reward(answer) == 1.0
    outcome = _outcome(exit_status, resolved=resolved, masked=bool(answer.get("mask_sample")))
    graded = outcome is not Outcome.INFRA_ERROR
    counts = _mapping(info, "agent_metrics")
    messages = tuple(
        message_from_wire(message)
        for message in answer.get("messages") or ()
        if isinstance(message, dict) and "role" in message
    )
    num_turns = sum(message.role == "assistant" for message in messages)
    return EpisodeResult(
        episode_id=episode_id,
        instance_id=str(answer.get("instance_id", instance_id)),
        outcome=outcome,
        exit_status=exit_status,
        messages=messages,
        patch=_text(answer, "patch"),
        submission=_text(info, "submission"),
        verdict=_verdict(answer, instance_id, resolved) if graded else None,
        error=None if graded else _text(info, "error") or exit_status,
        num_turns=_count(counts, "turns", num_turns),
        num_tool_calls=_count(counts, "tool_calls", num_turns),
        timings=_timings(counts),
    )


def _outcome(exit_status: str, *, resolved: bool, masked: bool) -> Outcome:
    if masked:
        return Outcome.INFRA_ERROR
    if exit_status == ExitStatus.SUBMITTED:
        return Outcome.SOLVED if resolved else Outcome.UNSOLVED
    return Outcome.TRUNCATED if exit_status in _TRUNCATED else Outcome.INFRA_ERROR


def _reward(answer: Mapping[str, Any]) -> float:
    reward = answer.get("reward")
    if isinstance(reward, bool) or not isinstance(reward, int | float):
        raise ValueError("reward is missing")
    if reward not in (0, 1):
        raise ValueError(f"the reward is {reward}; it must be 0 or 1")
    return float(reward)


def _verdict(answer: Mapping[str, Any], instance_id: str, resolved: bool) -> Verdict:
    report = _mapping(_mapping(answer, "metadata"), "eval_report")
    tests = _mapping(_mapping(report, instance_id.lower()), "tests_status")
    return Verdict(
        resolved=resolved,
        patch_applied=bool(_mapping(report, instance_id.lower()).get("patch_successfully_applied")),
        fail_to_pass=_split(_mapping(tests, "FAIL_TO_PASS")),
        pass_to_pass=_split(_mapping(tests, "PASS_TO_PASS")),
        statuses={},
        log="",
        duration_s=_seconds(_mapping(_mapping(answer, "info"), "agent_metrics"), "eval_time")
        or 0.0,
    )


def _split(tests: Mapping[str, Any]) -> TestSplit:
    return TestSplit(
        success=tuple(map(str, tests.get("success") or ())),
        failure=tuple(map(str, tests.get("failure") or ())),
    )


def _timings(metrics: Mapping[str, Any]) -> Timings:
    return Timings(
        agent_s=_seconds(metrics, "agent_run_time"),
        model_s=_seconds(metrics, "model_query_time_sum"),
        env_s=_seconds(metrics, "env_execution_time_sum"),
        eval_s=_seconds(metrics, "eval_time"),
        total_s=_seconds(metrics, "total_time"),
    )


def _seconds(metrics: Mapping[str, Any], name: str) -> float | None:
    value = metrics.get(name)
    return float(value) if isinstance(value, int | float) else None


def _count(metrics: Mapping[str, Any], name: str, otherwise: int) -> int:
    value = metrics.get(name)
    return int(value) if isinstance(value, int | float) else otherwise


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    return value if isinstance(value, str) else None


def _mapping(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is a {type(value).__name__}, not an object")
    return value
