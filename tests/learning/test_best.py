from __future__ import annotations

from pathlib import Path

import pytest

from palestra.errors import CheckpointError, HostError
from palestra.learning.best import BestCheckpoints, best_step

METRIC = "sampled/solve_rate"


def best_of(folder: Path, count: int = 2, metric: str = METRIC) -> BestCheckpoints:
    return BestCheckpoints(folder, metric=metric, count=count)


def test_the_best_are_kept_and_of_equals_the_later(tmp_path: Path) -> None:
    best = best_of(tmp_path)
    for step, score in ((0, 0.1), (2, 0.5), (4, 0.3), (6, 0.5), (8, 0.2)):
        best.rate(step, {METRIC: score, "greedy/solve_rate": 1 - score})
    assert best.kept([0, 2, 4, 6, 8]) == {2, 6}
    assert best.kept([0, 4, 8]) == {4, 8}, "only what is there can be kept"
    assert best_of(tmp_path, 1).kept([0, 2, 4, 6, 8]) == {6}, "scores outlive the process"
    assert best_of(tmp_path, 0).kept([0, 2]) == frozenset()
    assert best_step(tmp_path, [0, 2, 4]) == 2
    assert best_step(tmp_path, [9]) is None
    assert best_step(tmp_path / "none", [0]) is None


def test_what_awaits_its_score_is_kept_until_it_has_it(tmp_path: Path) -> None:
    best = best_of(tmp_path, 1)
    best.rate(0, {METRIC: 0.5})
    best.expect(2)
    assert best.kept([0, 2, 4]) == {0, 2}
    best.rate(2, {METRIC: 0.4})
    assert best.kept([0, 2, 4]) == {0}
    best.expect(4)
    best.rate(4, {"sampled/episodes": 0.0})  # nothing could be graded: no score, and no 0
    assert best.kept([0, 2, 4]) == {0}
    assert best_step(tmp_path, [4]) is None


def test_later_scores_are_forgotten_and_so_are_those_of_another_metric(tmp_path: Path) -> None:
    best = best_of(tmp_path)
    best.rate(2, {METRIC: 0.1})
    best.rate(4, {METRIC: 0.9})
    best.forget(after_step=2)
    assert best_of(tmp_path).kept([2, 4]) == {2}
    other = best_of(tmp_path, metric="sampled/pass@4")
    assert other.kept([2, 4]) == frozenset()
    other.rate(4, {"sampled/pass@4": 0.2})
    assert best_step(tmp_path, [2, 4]) == 4


def test_trouble_with_the_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text("{torn")
    with pytest.raises(CheckpointError, match=r"cannot read .*scores.json"):
        best_of(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises((HostError, CheckpointError), match="score"):
        best_of(blocked).rate(0, {METRIC: 1.0})
