from __future__ import annotations

from dataclasses import replace

import pytest
from log_makers import STEP_S, make_episode, make_group, make_log, make_step

from palestra.config import Recipe
from palestra.dashboard.critical_path import Stage
from palestra.dashboard.run_log import EpisodeEntry, GroupEntry, StepEntry
from palestra.dashboard.slow import SlowReport, why_slow, with_commands
from palestra.dashboard.why_text import slow_lines
from palestra.records import CommandRun, EpisodeResult, Outcome, Timings

WHOLE = Timings(
    queue_s=1.0, image_s=2.0, start_s=1.0, agent_s=10.0, model_s=6.0, env_s=3.0, eval_s=4.0,
    total_s=18.0,
)  # fmt: skip
"""With the queue 19 s: 1 s of the agent and 1 s of the diff are nobody's else."""


def group_of(*episodes: EpisodeEntry) -> GroupEntry:
    return GroupEntry(
        group_id="run-0",
        instance_id="task",
        task_index=0,
        rewards=(1.0,) * len(episodes),
        kept=True,
        drop_reason=None,
        episodes=episodes,
    )


def step_of(*episodes: EpisodeEntry, wall_s: float, wait_s: float, **metrics: float) -> StepEntry:
    """A step that begins at 0 and waits for ``episodes``."""
    named = {"time/step_s": wall_s, "rollout/wait_s": wait_s, **metrics}
    return StepEntry(
        step=1,
        version=1,
        trained=True,
        ended_s=wall_s,
        metrics=named,
        groups=(group_of(*episodes),),
    )


def seconds(report: SlowReport) -> dict[Stage, float]:
    return {time.stage: pytest.approx(time.seconds) for time in report.stages}


def test_one_episode_by_hand() -> None:
    episode = make_episode("run-0-0", began_s=1.0, ended_s=20.5, timings=WHOLE)
    step = step_of(
        episode, wall_s=30.0, wait_s=21.0, **{"time/train_s": 6.0, "time/publish_s": 2.0}
    )
    report = why_slow(make_log([step]), Recipe())
    assert seconds(report) == {
        Stage.MODEL: 6.0,
        Stage.TRAIN: 6.0,
        Stage.GRADING: 4.0,
        Stage.COMMAND: 3.0,
        Stage.PULL: 2.0,
        Stage.PUBLISH: 2.0,
        Stage.OTHER: 1.0 + 1.0 + 1.0,  # the agent's own, the diff, storing
        Stage.QUEUE: 1.0,
        Stage.START: 1.0,
        Stage.IDLE: 1.0 + 0.5 + 0.5,  # before the episode, in front of its work, after it
    }
    assert report.wall_s == 30.0
    (worst,) = report.worst
    assert worst.critical_s == pytest.approx(19.5)
    assert worst.longest is not None
    assert worst.longest.stage is Stage.MODEL


def test_the_path_goes_through_the_place_that_an_episode_waited_for() -> None:
    model = Timings(agent_s=9.9, model_s=9.9, total_s=9.9)
    tests = Timings(eval_s=30.0, total_s=30.0)
    early = make_episode("run-0-0", began_s=0.0, ended_s=30.0, timings=tests)
    other = make_episode("run-0-1", began_s=0.0, ended_s=20.0, timings=model)
    late = make_episode("run-0-2", began_s=30.005, ended_s=40.0, timings=model)
    report = why_slow(make_log([step_of(early, other, late, wall_s=40.0, wait_s=40.0)]), Recipe())
    found = {time.stage: time.seconds for time in report.stages}
    assert found[Stage.GRADING] == pytest.approx(30.0)
    assert found[Stage.MODEL] == pytest.approx(9.9)
    assert [p.rollout_id for p in report.steps[0].path if p.stage is not Stage.IDLE] == [
        "run-0-0",
        "run-0-2",
    ]
    assert [slow.rollout_id for slow in report.worst] == ["run-0-0", "run-0-2", "run-0-1"]


def test_an_episode_that_began_before_its_step_counts_from_the_step_on() -> None:
    episode = make_episode(
        "run-0-0",
        began_s=-50.0,
        ended_s=10.0,
        timings=Timings(agent_s=40.0, model_s=30.0, env_s=10.0, eval_s=20.0, total_s=60.0),
    )
    report = why_slow(make_log([step_of(episode, wall_s=10.0, wait_s=10.0)]), Recipe())
    assert seconds(report) == {Stage.GRADING: 10.0}
    assert report.worst[0].lasted_s == 60.0
    assert report.worst[0].critical_s == pytest.approx(10.0)


def test_attempts_that_failed_come_before_the_last_one() -> None:
    episode = make_episode(
        "run-0-0", ended_s=20.0, num_retries=2, timings=Timings(eval_s=5.0, total_s=5.0)
    )
    report = why_slow(make_log([step_of(episode, wall_s=20.0, wait_s=20.0)]), Recipe())
    assert seconds(report) == {Stage.RETRY: 15.0, Stage.GRADING: 5.0}


def test_a_faster_clock_elsewhere_does_not_break_the_sum() -> None:
    episode = make_episode(
        "run-0-0", ended_s=10.0, timings=Timings(start_s=10.0, eval_s=10.0, total_s=20.0)
    )
    report = why_slow(make_log([step_of(episode, wall_s=10.0, wait_s=10.0)]), Recipe())
    assert seconds(report) == {Stage.START: 5.0, Stage.GRADING: 5.0}


def test_episodes_that_nobody_timed_are_said_to_be_so() -> None:
    episode = make_episode("run-0-0", ended_s=10.0)
    report = why_slow(make_log([step_of(episode, wall_s=10.0, wait_s=10.0)]), Recipe())
    assert seconds(report) == {Stage.UNTIMED: 10.0}


def test_a_run_without_steps_or_times() -> None:
    empty = why_slow(make_log([]), Recipe())
    assert empty.verdict == "no step is complete yet"
    assert (empty.steps, empty.worst, empty.advice) == ((), (), ())
    untimed = why_slow(make_log([make_step(1, [make_group(0, [0.0, 1.0])])]), Recipe())
    assert untimed.steps == ()


def test_what_lies_between_steps_is_not_of_them() -> None:
    steps = [make_step(n, [], time__step_s=20.0, rollout__wait_s=20.0) for n in (1, 2)]
    report = why_slow(make_log(steps), Recipe())
    assert report.wall_s == 40.0
    assert report.between_s == pytest.approx(STEP_S - 20.0)
    assert why_slow(make_log(steps), Recipe(), step=2).between_s == 0.0


def test_ten_worst_of_many_with_their_longest_command() -> None:
    episodes = [
        make_episode(f"run-0-{n}", ended_s=float(n), timings=Timings(eval_s=n, total_s=n))
        for n in range(1, 31)
    ]
    report = why_slow(make_log([step_of(*episodes, wall_s=30.0, wait_s=30.0)]), Recipe())
    assert [slow.rollout_id for slow in report.worst] == [f"run-0-{n}" for n in range(30, 20, -1)]
    commands = tuple(
        CommandRun(command=text, began_s=0.0, duration_s=lasted_s, exit_code=0)
        for text, lasted_s in (("ls", 0.1), ("pytest", 9.0), ("true", 0.0))
    )
    stored = EpisodeResult(
        episode_id="e",
        instance_id="task",
        outcome=Outcome.SOLVED,
        exit_status="Submitted",
        messages=(),
        patch="",
        submission=None,
        verdict=None,
        error=None,
        num_turns=3,
        num_tool_calls=3,
        timings=Timings(),
        commands=commands,
    )
    told = with_commands(report, {"run-0-30": stored})
    assert told.worst[0].command == commands[1]
    assert told.worst[1].command is None


@pytest.mark.parametrize(
    ("timings", "recipe", "key"),
    [
        (Timings(image_s=9.0, total_s=9.0), {}, "palestra images pull"),
        (Timings(start_s=9.0, total_s=9.0), {}, "sandbox.backend"),
        (Timings(eval_s=9.0, total_s=9.0), {}, "environment.reuse_verdicts"),
        (Timings(agent_s=9.0, env_s=9.0, total_s=9.0), {}, "environment.step_timeout_s"),
        (Timings(agent_s=9.0, model_s=9.0, total_s=9.0), {"max_batch": 4}, "engine.max_batch"),
        (Timings(start_s=9.0, total_s=9.0), {"concurrency": 4}, "environment.concurrency"),
    ],
)
def test_advice_names_the_key_and_its_value(
    timings: Timings, recipe: dict[str, int], key: str
) -> None:
    section = "engine" if "max_batch" in recipe else "environment"
    made = Recipe.model_validate({section: recipe})
    episode = make_episode("run-0-0", ended_s=9.0, timings=timings)
    report = why_slow(make_log([step_of(episode, wall_s=9.0, wait_s=9.0)]), made)
    (advice,) = [a for a in report.advice if a.key.startswith(key)]
    if recipe:
        assert advice.now == "4"
    assert advice.share > 0.5
    assert any(char.isdigit() for char in advice.reason)


def test_advice_to_overlap_says_what_it_saves() -> None:
    episode = make_episode(
        "run-0-0", ended_s=60.0, timings=Timings(agent_s=60.0, model_s=60.0, total_s=60.0)
    )
    step = step_of(episode, wall_s=100.0, wait_s=60.0, **{"time/train_s": 40.0})
    report = why_slow(make_log([step]), Recipe())
    (advice,) = [a for a in report.advice if a.key == "rollouts.max_off_policy_steps"]
    assert advice.share == pytest.approx(0.4)
    overlapped = Recipe.model_validate({"rollouts": {"max_off_policy_steps": 1}})
    keys = [a.key for a in why_slow(make_log([step]), overlapped).advice]
    assert "rollouts.max_off_policy_steps" not in keys


def test_more_staleness_is_advised_where_it_is_used_up_and_steps_still_wait() -> None:
    def keys(lag: float, allowed: int = 1, wait_s: float = 6.0) -> list[str]:
        metrics = {"rollout/off_policy_steps_mean": lag, "time/step_s": 8.0}
        step = step_of(make_episode("run-0-0"), wall_s=8.0, wait_s=wait_s, **metrics)
        recipe = Recipe.model_validate({"rollouts": {"max_off_policy_steps": allowed}})
        return [a.key for a in why_slow(make_log([step]), recipe).advice]

    wanted = "rollouts.max_off_policy_steps"
    assert wanted in keys(lag=1.0)
    assert wanted not in keys(lag=0.5), "groups could be later, but are not"
    assert wanted not in keys(lag=1.0, wait_s=2.0), "little is waited for"
    assert wanted in keys(lag=1.9, allowed=2)
    step = step_of(make_episode("run-0-0"), wall_s=8.0, wait_s=6.0, **{"time/step_s": 8.0})
    late = Recipe.model_validate({"rollouts": {"max_off_policy_steps": 1}})
    assert wanted not in [a.key for a in why_slow(make_log([step]), late).advice], "lag unknown"


def test_the_text_names_a_command_that_took_long_and_escapes_it() -> None:
    episode = make_episode("run-0-0", ended_s=10.0, timings=Timings(eval_s=10.0, total_s=10.0))
    report = why_slow(make_log([step_of(episode, wall_s=10.0, wait_s=10.0)]), Recipe())

    def told(command: str, lasted_s: float) -> str:
        run = CommandRun(command=command, began_s=0.0, duration_s=lasted_s, exit_code=0)
        worst = replace(report.worst[0], command=run)
        return "\n".join(slow_lines(replace(report, worst=(worst,))))

    assert "longest command 4.0 s: 'pytest \\x1b[2J'" in told("pytest \x1b[2J", 4.0)
    assert "x'…" in told("x" * 100, 4.0)
    assert "longest command" not in told("ls", 0.01)
