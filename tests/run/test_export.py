from __future__ import annotations

import json
from pathlib import Path

import pytest

from palestra.config import Recipe
from palestra.errors import CheckpointError, ConfigError
from palestra.learning.best import BestCheckpoints
from palestra.run.directory import RunDirectory, create_run
from palestra.run.export import export, find_checkpoint


def checkpoint(run: RunDirectory, step: int) -> None:
    """A checkpoint as the trainer leaves it, of small files."""
    folder = run.checkpoints / str(step)
    (folder / "model").mkdir(parents=True)
    files = {
        "model/model.safetensors": f"weights {step}",
        "model/config.json": "{}",
        "trainer.pt": "state",
        "progress.json": "{}",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "manifest.json").write_text(json.dumps({n: len(t) for n, t in files.items()}))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    made, _ = create_run(Recipe(runs=tmp_path / "runs"))
    for step in (2, 4, 6):
        checkpoint(made, step)
    return made


def exported(run: RunDirectory, to: Path, *, step: int | None = None, best: bool = False) -> str:
    export(find_checkpoint(run, step=step, best=best), to)
    assert sorted(path.name for path in to.iterdir()) == ["config.json", "model.safetensors"]
    return (to / "model.safetensors").read_text()


def test_the_newest_a_named_and_the_best_one(run: RunDirectory, tmp_path: Path) -> None:
    assert exported(run, tmp_path / "newest") == "weights 6"
    assert exported(run, tmp_path / "deep" / "named", step=2) == "weights 2"
    best = BestCheckpoints(run.checkpoints, metric="sampled/solve_rate", count=1)
    for step, score in ((0, 0.9), (2, 0.1), (4, 0.3), (6, 0.2)):
        best.rate(step, {"sampled/solve_rate": score})
    assert exported(run, tmp_path / "best", best=True) == "weights 4", "0 is not kept any more"


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(
    run: RunDirectory, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no checkpoint of step 5, only of 2, 4, 6"):
        find_checkpoint(run, step=5, best=False)
    with pytest.raises(ConfigError, match=r"no checkpoint of .* has a score"):
        find_checkpoint(run, step=None, best=True)
    with pytest.raises(ConfigError, match="not a run directory"):
        find_checkpoint(RunDirectory(tmp_path / "none"), step=None, best=False)
    empty, _ = create_run(Recipe(runs=tmp_path / "runs"))
    with pytest.raises(ConfigError, match="no checkpoint yet"):
        find_checkpoint(empty, step=None, best=False)
    (run.checkpoints / "4" / "model" / "model.safetensors").write_text("torn")
    with pytest.raises(CheckpointError, match="step 4 is torn"):
        find_checkpoint(run, step=4, best=False)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "note").write_text("keep me")
    with pytest.raises(ConfigError, match="is there already"):
        export(find_checkpoint(run, step=6, best=False), mine)
    assert (mine / "note").read_text() == "keep me"
    full = tmp_path / "file"
    full.write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        export(find_checkpoint(run, step=6, best=False), full / "model")
