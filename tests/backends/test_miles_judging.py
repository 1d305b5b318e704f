"""The group filter, the rewards and the aggregated metrics, on Miles' real types."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest
from miles_parts import real_miles

from palestra.backends.miles.metrics import aggregate
from palestra.backends.miles.settings import HookSettings
from palestra.errors import ConfigError, EnvironmentUnavailable

Sample = real_miles("miles.utils.types").Sample
Output = real_miles("miles.rollout.filter_hub.base_types").DynamicFilterOutput
hooks = real_miles("palestra.backends.miles")
ARGS = Namespace(reward_key=None)


def sample(reward: float | None, status: str = "COMPLETED", **metadata: Any) -> Any:
    return Sample(reward=reward, status=Sample.Status[status], metadata=metadata)


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        ([sample(1.0), sample(0.0)], None),
        ([sample(1.0), sample(0.0, "TRUNCATED")], None),
        ([sample(1.0), sample(None, "ABORTED")], "group_has_aborted"),
        ([sample(1.0), sample(None)], "group_has_aborted"),
        ([sample(0.0), sample(0.0)], "zero_std_0.0"),
        ([sample(1.0), sample(1.0)], "zero_std_1.0"),
        ([sample(1.0)], None),
        ([[sample(1.0)], [sample(0.0), sample(None, "ABORTED")]], "group_has_aborted"),
    ],
)
def test_which_groups_are_dropped_and_why(group: list[Any], reason: str | None) -> None:
    output = hooks.dynamic_filter(ARGS, group)
    assert isinstance(output, Output)
    assert (output.keep, output.reason) == (reason is None, reason)


def test_equal_groups_can_be_kept() -> None:
    args = Namespace(reward_key=None, palestra_drop_equal_groups=False)
    assert hooks.dynamic_filter(args, [sample(0.0), sample(0.0)]).keep
    assert not hooks.dynamic_filter(args, [sample(0.0), sample(None, "ABORTED")]).keep


async def test_a_missing_reward_is_none_and_takes_the_sample_out_of_the_loss() -> None:
    known, missing = sample(None), sample(None)
    known.metadata["reward"] = 1.0
    assert await hooks.reward_func(ARGS, known) == 1.0
    assert await hooks.reward_func(ARGS, [known, missing]) == [1.0, None]
    assert missing.remove_sample
    assert not known.remove_sample


def test_metrics_have_the_names_of_miles_and_skip_what_nobody_reports() -> None:
    got = aggregate(
        [
            {"turns": 2, "tool_calls": 1, "total_time": 4.0, "eval_time": 1.0, "time_per_turn": 2},
            {},
            {"turns": 4, "tool_calls": 3, "total_time": 8.0, "model_time_ratio": 0.5},
        ]
    )
    assert got == {
        "agent/turns_mean": 3.0,
        "agent/turns_sum": 6.0,
        "agent/tool_calls_mean": 2.0,
        "agent/tool_calls_sum": 4.0,
        "agent/eval_time_mean": 1.0,
        "agent/time_per_turn": 2.0,
        "agent/model_time_ratio": 0.5,
        "agent/total_time_mean": 6.0,
        "agent/total_time_max": 8.0,
        "agent/total_time_min": 4.0,
    }
    assert aggregate([{}, {}]) == {}


def test_a_run_in_which_nothing_succeeds_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    service = real_miles("palestra.backends.miles.service")
    monkeypatch.setattr(service, "MAX_FAILING_S", 0.0)
    luck = service.Luck()
    error = EnvironmentUnavailable("nobody there")
    for _ in range(service.MAX_FAILURES - 1):
        luck.failed(error)
    luck.succeeded()
    for _ in range(service.MAX_FAILURES - 1):
        luck.failed(error)
    with pytest.raises(EnvironmentUnavailable, match=r"16 rollouts in a row failed.*nobody there"):
        luck.failed(error)


def test_settings_come_from_the_arguments_then_from_the_variables() -> None:
    variables = {"SWE_AGENT_GYM_URL": "http://swe_env:1", "PALESTRA_TOKEN": "secret"}
    read = HookSettings.read(Namespace(lr=1, palestra_infra_retries=1), variables)
    assert (read.environment_url, read.token, read.infra_retries) == (
        "http://swe_env:1",
        "secret",
        1,
    )
    assert "secret" not in repr(read)
    named = HookSettings.read(Namespace(palestra_environment_url="http://b:2"), variables)
    assert named.environment_url == "http://b:2"
    with pytest.raises(ConfigError, match="palestra_rendrer"):
        HookSettings.read(Namespace(palestra_rendrer="qwen3"), {})
