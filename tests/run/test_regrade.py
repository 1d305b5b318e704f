from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from palestra.cli.regrade import report_lines, report_to_wire
from palestra.config import Recipe
from palestra.environment.grading.fake import ScriptedGrader, verdict_of
from palestra.environment.sandboxes.fake import FakeSandboxBackend
from palestra.environment.sandboxes.protocol import SandboxLimits
from palestra.errors import GradingError, TaskError
from palestra.records import EpisodeResult, Outcome, Task, Timings
from palestra.run.episode_tasks import EpisodeTasks
from palestra.run.regrade import RegradeReport, outcome_after, regrade
from palestra.run.stored_episodes import StoredEpisode
from palestra.tasks.source import load_tasks

KATAS = "katas:train?seed=0&n=3&level=0"


def stored(name: str, task: Task, outcome: Outcome, *, patch: str | None = "diff") -> StoredEpisode:
    graded = outcome in (Outcome.SOLVED, Outcome.UNSOLVED, Outcome.TRUNCATED)
    episode = EpisodeResult(
        episode_id=name,
        instance_id=task.instance_id,
        outcome=outcome,
        exit_status="Submitted",
        messages=(),
        patch=patch,
        submission=None,
        verdict=verdict_of(task, resolved=outcome is Outcome.SOLVED) if graded else None,
        error=None,
        num_turns=1,
        num_tool_calls=1,
        timings=Timings(),
    )
    return StoredEpisode(name=name, path=Path("episodes.jsonl"), episode=episode)


@pytest.fixture
def tasks() -> list[Task]:
    return load_tasks(KATAS)


async def regraded(
    episodes: list[StoredEpisode], resolves: Callable[[Task, str], bool]
) -> RegradeReport:
    return await regrade(
        episodes,
        EpisodeTasks(Recipe(), KATAS, report=print),
        ScriptedGrader(resolves),
        backend=FakeSandboxBackend(),
        limits=SandboxLimits(),
        concurrency=2,
    )


async def test_what_changes_is_told_test_by_test(tasks: list[Task]) -> None:
    first, second, third = tasks
    episodes = [
        stored("a", first, Outcome.SOLVED),
        stored("b", second, Outcome.UNSOLVED),
        stored("c", third, Outcome.SOLVED),
        stored("d", first, Outcome.MALFORMED, patch=None),
        stored("e", first, Outcome.TRUNCATED),
        stored("f", first, Outcome.INFRA_ERROR),
    ]
    report = await regraded(episodes, lambda task, patch: task != third)
    assert [item.name for item in report.regraded] == ["a", "b", "c", "e", "f"]
    assert [item.name for item in report.changed] == ["b", "c", "e", "f"]
    assert report.moves == {
        ("unsolved", "solved"): 1,
        ("solved", "unsolved"): 1,
        ("infra_error", "solved"): 1,
    }
    assert report.num_without_patch == 1
    truncated = report.regraded[3]
    assert (truncated.before.reward, truncated.after.reward) == (0.0, 1.0)
    (changed, *_) = report.changed
    assert {(t.before, t.after) for t in changed.tests} == {("FAILED", "PASSED")}
    wire = report_to_wire(report)
    assert (wire["regraded"], wire["unchanged"], wire["without_patch"]) == (5, 1, 1)
    assert wire["changed"][0]["outcome"] == {"before": "unsolved", "after": "solved"}
    text = "\n".join(report_lines(report))
    assert "unsolved → solved" in text
    assert "reward 0 → 1" in text


async def test_the_same_grader_changes_nothing(tasks: list[Task]) -> None:
    report = await regraded(
        [stored("a", tasks[0], Outcome.SOLVED), stored("b", tasks[1], Outcome.SOLVED)],
        lambda task, patch: True,
    )
    assert report.changed == ()
    assert "2 patches graded again: 0 changed" in report_lines(report)[-1]


async def test_trouble_of_the_grader_is_no_verdict(tasks: list[Task]) -> None:
    def broken(task: Task, patch: str) -> bool:
        raise GradingError("no such machine")

    unknown = replace(tasks[0], instance_id="unknown")
    report = await regraded(
        [stored("a", tasks[0], Outcome.SOLVED), stored("b", unknown, Outcome.SOLVED)], broken
    )
    assert report.regraded == ()
    assert [(f.name, f.error) for f in report.failed] == [
        ("a", "GradingError: no such machine"),
        ("b", "no row of this id"),
    ]


async def test_what_the_user_must_mend_is_raised_as_it_is(tasks: list[Task]) -> None:
    def unknown_parser(task: Task, patch: str) -> bool:
        raise TaskError("there is no log parser of this name")

    with pytest.raises(TaskError, match="log parser"):
        await regraded([stored("a", tasks[0], Outcome.SOLVED)], unknown_parser)


def test_tampering_goes_before_how_the_agent_stopped(tasks: list[Task]) -> None:
    tampered = replace(verdict_of(tasks[0], resolved=False), tampered=True)
    assert outcome_after(Outcome.TRUNCATED, tampered) is Outcome.TAMPERED
    solved = verdict_of(tasks[0], resolved=True)
    assert outcome_after(Outcome.TAMPERED, solved) is Outcome.SOLVED
    assert outcome_after(Outcome.TRUNCATED, solved) is Outcome.TRUNCATED
