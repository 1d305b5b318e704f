from __future__ import annotations

import pytest

from palestra.records import (
    FinishReason,
    Outcome,
    Segment,
    Task,
    TaskFile,
    TestSplit,
    Trace,
    Turn,
    Verdict,
    reward_of,
)


def segment(*ids: int, version: int = 0) -> Segment:
    return Segment(ids=ids, logprobs=tuple(-0.5 for _ in ids), policy_version=version)


def turn(index: int, parent: int | None, context: tuple[int, ...], *segments: Segment) -> Turn:
    return Turn(
        index=index,
        parent=parent,
        context_ids=context,
        segments=segments,
        finish_reason=FinishReason.STOP,
        temperature=0.8,
        duration_s=0.1,
    )


def test_a_path_is_the_prompt_and_samples_in_order() -> None:
    trace = Trace(
        session_id="s",
        turns=(
            turn(0, None, (1, 2), segment(3, version=4), segment(9, version=5)),
            turn(1, 0, (5,), segment(6, 7, version=5)),
        ),
    )
    (path,) = trace.paths()
    assert path.ids == (1, 2, 3, 9, 5, 6, 7)
    assert path.trainable == (False, False, True, True, False, True, True)
    assert path.versions == (-1, -1, 4, 5, -1, 5, 5)
    assert path.logprobs == (0.0, 0.0, -0.5, -0.5, 0.0, -0.5, -0.5)
    assert path.temperatures == (1.0, 1.0, 0.8, 0.8, 1.0, 0.8, 0.8)
    assert trace.prompt_ids(trace.turns[1]) == (1, 2, 3, 9, 5)
    assert trace.policy_versions == {4, 5}


def test_turns_that_are_left_out_stay_as_context() -> None:
    trace = Trace(
        session_id="s",
        turns=(
            turn(0, None, (1,), segment(2)),
            turn(1, 0, (3,), segment(4)),
            turn(2, 1, (5,), segment(6)),
        ),
    )
    (path,) = trace.paths(untrained={1})
    assert path.ids == (1, 2, 3, 4, 5, 6)
    assert path.trainable == (False, True, False, False, False, True)


def test_a_shared_prefix_is_trained_once() -> None:
    trace = Trace(
        session_id="s",
        turns=(
            turn(0, None, (1,), segment(2)),
            turn(1, 0, (3,), segment(4)),
            turn(2, 0, (5,), segment(6)),
        ),
    )
    first, second = trace.paths()
    assert first.trainable == (False, True, False, True)
    assert second.ids == (1, 2, 5, 6)
    assert second.trainable == (False, False, False, True)


def test_a_turn_cannot_follow_a_later_one() -> None:
    with pytest.raises(ValueError, match="cannot follow"):
        turn(1, 1, (1,))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.5])
def test_a_logprob_is_a_finite_number_below_zero(bad: float) -> None:
    with pytest.raises(ValueError, match="logprob"):
        Segment(ids=(1,), logprobs=(bad,), policy_version=0)


def test_a_segment_has_a_logprob_per_id() -> None:
    with pytest.raises(ValueError, match="2 ids but 1 logprobs"):
        Segment(ids=(1, 2), logprobs=(-1.0,), policy_version=0)


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../../x", ".git/config"])
def test_a_task_file_stays_in_its_repository(path: str) -> None:
    with pytest.raises(ValueError, match="not a path inside"):
        TaskFile(path=path, text="")


def test_a_task_without_tests_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"some__task-1: no FAIL_TO_PASS"):
        Task(
            instance_id="some__task-1",
            repo="r",
            base_commit="c",
            problem_statement="p",
            image="i",
            fail_to_pass=(),
            pass_to_pass=(),
            gold_patch="",
            test_patch="",
            eval_script="",
            log_parser="parse_log_pytest",
        )


def verdict(*, resolved: bool) -> Verdict:
    none = TestSplit(success=(), failure=())
    return Verdict(
        resolved=resolved,
        patch_applied=True,
        fail_to_pass=none,
        pass_to_pass=none,
        statuses={},
        log="",
        duration_s=0.0,
    )


def test_trouble_of_the_infrastructure_has_no_reward() -> None:
    assert reward_of(Outcome.INFRA_ERROR, None) is None
    assert reward_of(Outcome.FLAKY, verdict(resolved=True)) is None


def test_a_truncated_episode_is_graded_as_it_stands() -> None:
    assert reward_of(Outcome.TRUNCATED, verdict(resolved=True)) == 1.0
    assert reward_of(Outcome.TRUNCATED, verdict(resolved=False)) == 0.0


@pytest.mark.parametrize("outcome", [Outcome.UNSOLVED, Outcome.MALFORMED, Outcome.TAMPERED])
def test_only_solving_pays(outcome: Outcome) -> None:
    assert reward_of(outcome, verdict(resolved=True)) == 0.0
    assert reward_of(Outcome.SOLVED, verdict(resolved=True)) == 1.0
