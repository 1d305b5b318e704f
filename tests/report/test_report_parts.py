from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_makers import make_episode, make_episodes, make_evaluation, make_run

from palestra.records import Message, Outcome, ToolCall
from palestra.report.comparison import compare, measure
from palestra.report.curves import smoothed
from palestra.report.examples import MAX_CHARS, choose_examples, shortened, turns_of
from palestra.report.run_record import Process, read_run
from palestra.report.summary import summary_lines
from palestra.report.svg import spread, tick_labels, ticks, whole_ticks
from palestra.report.time_use import clock_stages, total_s
from palestra.report.words import duration, number, plural
from palestra.run.facts import gather_facts

# --- comparison and examples --------------------------------------------------


def test_flips_are_counted_by_attempt() -> None:
    solved, unsolved = Outcome.SOLVED, Outcome.UNSOLVED

    def evaluation(step: int, *outcomes: Outcome) -> object:
        episodes = [make_episode(f"t{n}", outcome) for n, outcome in enumerate(outcomes)]
        return make_evaluation(episodes, step=step, mode="greedy")

    first = evaluation(0, solved, unsolved, solved, unsolved, unsolved)
    last = evaluation(4, solved, solved, unsolved, unsolved, Outcome.INFRA_ERROR)
    (comparison,) = compare([first, last])  # type: ignore[list-item]
    flips = comparison.flips
    assert flips is not None
    assert (flips.both, flips.gained, flips.lost, flips.neither) == (1, 1, 1, 1)
    assert comparison.is_separate is False


def test_intervals_that_touch_overlap() -> None:
    def of(step: int, solved: int) -> object:
        outcomes = [Outcome.SOLVED] * solved + [Outcome.UNSOLVED] * (200 - solved)
        episodes = [make_episode(f"t{n}", outcome) for n, outcome in enumerate(outcomes)]
        return make_evaluation(episodes, step=step, mode="sampled")

    # 60 of 200: 24.1 to 36.7 %; 80: 33.5 to 46.9 %; 90: 38.3 to 51.9 % (Wilson).
    (near,) = compare([of(0, 60), of(1, 80)])  # type: ignore[list-item]
    (far,) = compare([of(0, 60), of(1, 90)])  # type: ignore[list-item]
    assert (near.is_separate, far.is_separate) == (False, True)


def test_nothing_graded_has_no_rate() -> None:
    failed = make_episode("a", Outcome.INFRA_ERROR, messages=())
    measured = measure(make_evaluation([failed], step=0, mode="greedy"))
    assert (measured.rate, measured.interval, measured.num_failed) == (None, None, 1)


def test_the_examples_are_one_gained_and_one_still_failed_of_another_kind() -> None:
    before = [make_episode(f"t{n}", Outcome.UNSOLVED) for n in range(4)]
    after = [make_episode("t0", Outcome.SOLVED), *before[1:]]
    first, second = choose_examples(
        compare(
            [
                make_evaluation(before, step=0, mode="greedy", kinds=["a", "a", "b"]),
                make_evaluation(after, step=9, mode="greedy", kinds=["a", "a", "b"]),
            ]
        )
    )
    assert (first.instance_id, first.heading) == ("t0", "Failed before, solved after")
    assert (second.instance_id, second.kind) == ("t2", "b")
    assert second.heading == "Failed before, still failed after"
    assert (second.before.is_solved, second.after.is_solved) == (False, False)


def test_a_gain_in_the_other_mode_is_looked_for() -> None:
    same = [make_episode(f"t{n}", Outcome.UNSOLVED) for n in range(2)]
    gained = [same[0], make_episode("t1", Outcome.SOLVED)]
    examples = choose_examples(
        compare(
            [
                make_evaluation(same, step=0, mode="sampled"),
                make_evaluation(same, step=0, mode="greedy"),
                make_evaluation(gained, step=3, mode="sampled"),
                make_evaluation(same, step=3, mode="greedy"),
            ]
        )
    )
    assert [(e.mode, e.instance_id) for e in examples] == [("sampled", "t1"), ("sampled", "t0")]


def test_turns_of_text_tools_and_malformed_answers() -> None:
    messages = (
        Message(role="user", content="the prompt"),
        Message(role="assistant", content="I look.\n\n```bash\nls\n```\nThere."),
        Message(role="user", content="files"),
        Message(role="assistant", content="no command"),
        Message(role="user", content="Write exactly one."),
        Message(
            role="assistant",
            content="",
            tool_calls=(ToolCall(id="1", name="bash", arguments='{"command": "ls"}'),),
        ),
        Message(role="tool", content="a", tool_call_id="1"),
        Message(role="tool", content="b", tool_call_id="2"),
    )
    said, malformed, tool = turns_of(messages)
    assert (said.said, said.command, said.output) == ("I look.\n\n\nThere.", "ls", "files")
    assert (malformed.command, malformed.output) == (None, "Write exactly one.")
    assert (tool.command, tool.output) == ('bash {"command": "ls"}', "a\nb")


def test_what_is_too_long_says_how_much_is_left_out() -> None:
    assert shortened("x" * MAX_CHARS) == "x" * MAX_CHARS
    text = shortened("a" * MAX_CHARS + "b" * 100)
    assert "100 characters are not shown" in text
    assert text.endswith("b")
    assert len(text) < MAX_CHARS + 60


# --- drawing ------------------------------------------------------------------


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_cover_the_range_and_are_few(low: float, span: float) -> None:
    high = low + span
    if high - low < 1e-7 * max(1.0, abs(low)):
        return
    marks = ticks(low, high)
    slack = 1e-6 * max(abs(low), abs(high), span)
    assert marks[0] <= low + slack
    assert marks[-1] >= high - slack
    assert 2 <= len(marks) <= 9
    assert list(marks) == sorted(set(marks))


def test_ticks_by_hand() -> None:
    assert ticks(0, 0.87) == (0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert ticks(0, 10) == (0, 2, 4, 6, 8, 10)
    assert ticks(0, 2, smallest=1) == (0, 1, 2)
    assert whole_ticks(1, 3) == (1, 2, 3)
    assert whole_ticks(1, 86) == (20, 40, 60, 80)
    assert whole_ticks(5, 5) == (5,)
    with pytest.raises(ValueError, match="no range"):
        ticks(1, 1)


def test_labels_that_would_be_equal_get_more_digits() -> None:
    assert tick_labels([0.995, 1.0, 1.005], number) == ["0.995", "1", "1.005"]
    assert tick_labels([0.0, 0.5], number) == ["0", "0.5"]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_labels_keep_their_distance_and_their_place(wanted: list[float]) -> None:
    placed = spread(sorted(wanted), gap=10, low=0, high=100)
    gaps = [b - a for a, b in itertools.pairwise(placed)]
    assert all(gap >= 10 - 1e-6 for gap in gaps)
    assert placed[0] >= -1e-6
    assert placed[-1] <= 100 + 1e-6


def test_smoothing_keeps_both_ends_and_the_mean_of_a_line() -> None:
    line = [float(n) for n in range(50)]
    assert smoothed(line) == pytest.approx(line)
    assert smoothed([0.0, 9.0, 0.0]) == [0.0, 3.0, 0.0]


# --- words, time, summary -----------------------------------------------------


def test_words() -> None:
    assert [duration(s) for s in (0.04, 59.94, 59.96, 294, 7_530)] == [
        "0.0 s",
        "59.9 s",
        "1 min 0 s",
        "4 min 54 s",
        "2 h 5 min",
    ]
    assert [number(v) for v in (0, 0.0005, 1.5e-7, 1.0000003, 123.4, 20_600)] == [
        "0",
        "0.0005",
        "1.5e-7",
        "1",
        "123",
        "20\u202f600",
    ]
    assert (plural(1, "step"), plural(6880, "step")) == ("1 step", "6\u202f880 steps")


def test_time_adds_up_over_all_lives(tmp_path: Path) -> None:
    record = read_run(make_run(tmp_path, steps=2))
    lives = (
        Process(began_s=0, ended_s=40, loop_began_s=5, facts=None),
        Process(began_s=100, ended_s=160, loop_began_s=103, facts=None),
    )
    record = dataclasses.replace(record, processes=lives)
    stages = {stage.name: stage for stage in clock_stages(record)}
    assert total_s(record) == 100
    assert stages["starting"].seconds == 8
    assert stages["held-out evaluation"].seconds == pytest.approx(4 * 14.2)
    assert sum(s.seconds for s in stages.values()) == pytest.approx(100)
    assert sum(s.share for s in stages.values()) == pytest.approx(1)
    # What a killed process did after its last word is known from what it left.
    silent = dataclasses.replace(record, processes=lives[:1])
    assert total_s(silent) == pytest.approx(sum(s.seconds for s in clock_stages(silent)))
    assert total_s(silent) > 40


def test_the_summary_says_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    run.report.write_text("")
    monkeypatch.chdir(tmp_path)
    text = "\n".join(summary_lines(read_run(run)))
    assert "25.5 % (20.0 to 32.0) → 58.5 % (51.6 to 65.1) of 200" in text
    assert text.count("the intervals do not overlap") == 2
    assert "before 51 solved" in text
    assert "86 steps, 6\u202f880 episodes, 602\u202f000 sampled tokens" in text
    assert "demo/report.html" in text
    assert "palestra eval 'katas:heldout?seed=0&n=200&level=0' --agent mini" in text
    assert "--model demo/checkpoints/86/model" in text


def test_a_summary_of_nothing_is_short(tmp_path: Path) -> None:
    lines = summary_lines(read_run(make_run(tmp_path, steps=0, evaluations=[])))
    assert lines[0] == "Files"
    assert len(lines) == 2


def test_facts_hide_secrets() -> None:
    for words in (["--set", "environment.token=s3cret"], ["--set=environment.token=s3cret"]):
        assert "s3cret" not in gather_facts(["train", *words]).command
    facts = gather_facts(["train", "--set", "training.steps=3"])
    assert facts.command == "palestra train --set training.steps=3"
    assert facts.num_cpus >= 1
    assert any(version.startswith("palestra ") for version in facts.versions)


def test_a_run_of_many_episodes_is_read_in_their_order(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=2)
    record = read_run(run)
    assert [(e.plan.step, e.plan.mode) for e in record.evaluations] == [
        (0, "sampled"),
        (0, "greedy"),
        (2, "sampled"),
        (2, "greedy"),
    ]
    assert len(record.evaluations[0].episodes) == len(make_episodes(0.3))
    assert record.checkpoint == 2
