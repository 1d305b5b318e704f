"""Logs and rollouts are read piece by piece, torn ends and all."""

from __future__ import annotations

from pathlib import Path

import pytest
import zstandard
from dashboard_makers import SMALL, hostile_run
from scripted_run import BEGAN_S, Shape, line, make_run

from palestra.addresses import without_secrets
from palestra.dashboard.episode_view import UnreadableRecord, parse_record, view_of
from palestra.dashboard.index import RunIndex
from palestra.dashboard.library import Library, UnknownRun, is_live, read_recipe
from palestra.dashboard.listing import EvaluationRows, parse_query, select
from palestra.dashboard.panels import series_of
from palestra.dashboard.rollout_files import RolloutFiles, lines_of
from palestra.dashboard.tail import JsonLinesTail
from palestra.errors import HostError
from palestra.learning.rollouts.json_lines import SUFFIX
from palestra.run.directory import RunDirectory, locked


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return make_run(tmp_path_factory.mktemp("runs"), SMALL)


def test_a_tail_reads_what_is_new_and_leaves_a_line_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = JsonLinesTail(path)
    assert list(tail.read_new()) == []
    path.write_bytes(b'{"a":1}\n{"a":2}\n{"a":')
    assert [one["a"] for one in tail.read_new()] == [1, 2]
    assert list(tail.read_new()) == []
    with path.open("ab") as file:
        file.write(b'3}\n{torn\n[1]\n\xff\n{"a":4}\n')
    assert [one["a"] for one in tail.read_new()] == [3, 4]
    assert not tail.was_replaced()


def test_a_tail_notices_another_file_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"a":1}\n{"a":2}\n')
    tail = JsonLinesTail(path)
    assert len(list(tail.read_new())) == 2
    path.write_bytes(b'{"a":9}\n')
    assert tail.was_replaced()
    tail.restart()
    assert [one["a"] for one in tail.read_new()] == [9]


def test_an_index_read_in_pieces_is_the_one_read_at_once(run: RunDirectory, tmp_path: Path) -> None:
    data = run.events.read_bytes()
    copy = RunDirectory(tmp_path)
    pieces = RunIndex(copy)
    with copy.events.open("wb") as file:
        for at in range(0, len(data), 7_777):
            file.write(data[at : at + 7_777])
            file.flush()
            pieces.refresh()
    whole = RunIndex(run).refresh()
    assert pieces.episodes() == whole.episodes()
    assert len(whole.episodes()) == SMALL.steps * SMALL.groups * SMALL.group_size
    assert pieces.metrics.steps == whole.metrics.steps == list(range(1, SMALL.steps + 1))
    assert series_of(pieces) == series_of(whole)
    row = whole.episode("small-5-2")
    assert row is not None
    assert (row.step, row.group_id) == (2, "small-5")
    assert [one.rollout_id for one in whole.siblings(row)] == [f"small-5-{n}" for n in range(4)]


def test_what_a_resumed_run_does_again_replaces_what_it_did(
    run: RunDirectory, tmp_path: Path
) -> None:
    copy = RunDirectory(tmp_path)
    resumed = {"kind": "loop.started", "step": 5, "version": 5, "time_s": BEGAN_S + 1e6}
    copy.events.write_bytes(run.events.read_bytes() + line(resumed))
    index = RunIndex(copy).refresh()
    assert index.metrics.steps == [1, 2, 3, 4, 5]
    assert {row.step for row in index.episodes()} == {1, 2, 3, 4, 5}
    assert sorted(index.held_out) == [0]
    assert all(len(index.metrics.column(name)) == 5 for name in index.metrics.names)


def test_pass_at_k_has_a_panel_where_tasks_were_tried_several_times(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)

    def evaluation(step: int, share: float) -> dict[str, object]:
        ends = {"": share, "_low": share / 2, "_high": (1 + share) / 2}
        names = {f"eval/sampled/pass@{k}{end}": v for k in (1, 2, 4, 8) for end, v in ends.items()}
        metrics = names | {"eval/sampled/solve_rate": share, "eval/sampled/pass@8_tasks": 9.0}
        return {"kind": "evaluation", "step": step, "metrics": metrics, "time_s": BEGAN_S + step}

    skipped = {"kind": "evaluation.skipped", "step": 10, "time_s": BEGAN_S + 10}
    run.events.write_bytes(b"".join(map(line, (evaluation(0, 0.2), evaluation(5, 0.4), skipped))))
    index = RunIndex(run).refresh()
    (panel,) = [one for one in series_of(index) if one["name"] == "pass_at_k"]
    assert [one["label"] for one in panel["lines"]] == ["pass@1", "pass@4", "pass@8"]
    assert panel["steps"] == [0, 5]
    assert panel["lines"][0]["values"] == [0.2, 0.4]
    assert panel["lines"][2]["low"] == [0.1, 0.2]
    assert "after step 10 left out" in index.notices[-1].text


def test_events_of_another_version_are_passed_over(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    odd = [
        {"kind": "rollout", "time_s": 1.0},
        {"kind": "step", "time_s": 1.0, "step": "x", "version": 1, "metrics": []},
        {"kind": "group", "time_s": 1.0, "step": 1, "group_id": 3, "rewards": None},
        {"kind": 7, "time_s": 1.0},
        {"kind": "step", "time_s": 2.0, "step": 1, "version": 1, "metrics": {"a": 1.0, "b": "x"}},
    ]
    run.events.write_bytes(b"".join(map(line, odd)))
    index = RunIndex(run).refresh()
    assert index.metrics.steps == [1]
    assert index.metrics.at(0) == {"a": 1.0}
    assert index.episodes() == []


def test_an_episode_is_found_in_its_file(run: RunDirectory) -> None:
    files = RolloutFiles()
    path = run.rollouts / f"3{SUFFIX}"
    names = files.names(path)
    assert len(names) == SMALL.groups * SMALL.group_size
    by_hand = list(lines_of(path))
    assert [files.read(path, name) for name in names] == by_hand
    assert files.read(path, "small-0-0") is None
    view = view_of(parse_record(by_hand[5]))
    assert view.rollout_id == names[5]
    first = view.turns[0].commands[0]
    assert (first.exit_code, first.duration_s is not None) == (0, True)
    assert {test.before for test in view.tests} <= {"fails", "passes"}


def test_a_broken_file_is_said_and_not_raised_as_something_else(tmp_path: Path) -> None:
    path = tmp_path / f"1{SUFFIX}"
    path.write_bytes(b"no zstandard at all")
    with pytest.raises(HostError, match="cannot read"):
        RolloutFiles().names(path)
    with pytest.raises(HostError):
        RolloutFiles().names(tmp_path / f"2{SUFFIX}")
    path.write_bytes(zstandard.compress(b'{"rollout_id":"a","episode":{}}\n[]\n'))
    files = RolloutFiles()
    assert files.names(path) == ["a"]
    found = files.read(path, "a")
    assert found is not None
    with pytest.raises(UnreadableRecord):
        parse_record(found)


def test_what_is_no_utf8_and_what_is_too_long_is_shown_as_far_as_it_can_be(tmp_path: Path) -> None:
    run = hostile_run(tmp_path)
    files = RolloutFiles()
    path = run.rollouts / f"1{SUFFIX}"
    names = files.names(path)
    lines = {name: files.read(path, name) or b"" for name in names}
    long = view_of(parse_record(lines[names[1]])).turns[-1].outputs[-1]
    assert long.num_hidden > 10_000_000
    assert len(long.head) + len(long.tail) < 20_000
    broken = view_of(parse_record(lines[names[2]]))
    assert any("\ufffd" in turn.outputs[0].head for turn in broken.turns)
    half = view_of(parse_record(lines[names[3]]))
    assert "half of a pair" in half.turns[0].said.head


def test_filters_choose_by_every_field(run: RunDirectory) -> None:
    rows = RunIndex(run).refresh().episodes()

    def chosen(**fields: str) -> list[str]:
        return [row.rollout_id for row in select(rows, parse_query(fields))]

    assert len(chosen()) == len(rows)
    assert set(chosen(step="3")) == {f"small-{g}-{n}" for g in range(8, 12) for n in range(4)}
    assert len(chosen(step="2-4")) == 3 * 16
    assert chosen(step="none") == []
    solved = chosen(outcome="solved")
    assert 0 < len(solved) < len(rows)
    assert set(solved) == set(chosen(reward="1"))
    assert set(chosen(task="TOTAL-0004")) == {f"small-4-{n}" for n in range(4)}
    assert chosen(task="no such task") == []
    times = [row.total_s or 0 for row in select(rows, parse_query({"sort": "longest"}))]
    assert times == sorted(times, reverse=True)
    assert len(chosen(step="x", reward="?", sort="?")) == len(rows)


def test_a_library_knows_its_runs_and_nothing_beside_them(run: RunDirectory) -> None:
    library = Library(run.root.parent)
    assert library.names() == ["small"]
    assert Library(run.root).names() == ["small"]
    assert Library(run.root / "nowhere").names() == []
    for name in ("..", "", ".", "small/rollouts", "/etc"):
        with pytest.raises(UnknownRun):
            library.open(name)
    (summary,) = library.summaries()
    assert (summary.step, summary.planned_steps, summary.is_live) == (14, 14, False)
    assert summary.held_out["eval/greedy/solve_rate"] > 0
    assert EvaluationRows().names(run) == []
    assert len(library.open("small").episodes()) == 14 * 16


def test_a_run_is_live_while_a_process_holds_it(run: RunDirectory) -> None:
    assert not is_live(run)
    with locked(run):
        assert is_live(run)
    assert not is_live(run)


def test_secrets_of_a_recipe_are_shown_nowhere(tmp_path: Path) -> None:
    run = make_run(tmp_path, Shape(name="secret", steps=1, groups=1, group_size=2))
    recipe = run.recipe.read_text().replace(
        "[environment]", '[environment]\ntoken = "s3cret"\nurl = "http://x:s3cret@box:11000/a"'
    )
    run.recipe.write_text(recipe)
    found = read_recipe(run)
    assert "s3cret" not in str(found)
    assert found["environment"]["url"] == "http://box:11000/a"
    assert without_secrets("http://[::1]:11000") == "http://[::1]:11000"
    assert "s3cret" not in without_secrets("http://x:s3cret@[broken")
