from __future__ import annotations

from pathlib import Path

import pytest

from palestra.config import Recipe
from palestra.errors import ConfigError, HostError
from palestra.recipe_files import load_recipe
from palestra.run.directory import create_run, locked, open_run


def recipe(runs: Path) -> Recipe:
    return Recipe(name="trial", runs=runs)


def test_a_run_never_writes_over_another(tmp_path: Path) -> None:
    first, _ = create_run(recipe(tmp_path))
    second, named = create_run(recipe(tmp_path))
    assert (first.root.name, second.root.name) == ("trial", "trial-2")
    assert named.name == "trial-2"
    assert load_recipe(second.recipe).name == "trial-2"


def test_the_written_recipe_is_the_whole_recipe(tmp_path: Path) -> None:
    run, named = create_run(recipe(tmp_path))
    reopened, again = open_run(run.root, [])
    assert again == named
    assert reopened == run


def test_overrides_at_resume_are_kept(tmp_path: Path) -> None:
    run, _ = create_run(recipe(tmp_path))
    open_run(run.root, ["training.steps=7"])
    assert open_run(run.root, [])[1].training.steps == 7


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run directory"):
        open_run(tmp_path, [])


def test_two_processes_cannot_work_on_one_run(tmp_path: Path) -> None:
    run, _ = create_run(recipe(tmp_path))
    with locked(run), pytest.raises(ConfigError, match="another process"), locked(run):
        pass
    with locked(run):
        pass  # free again


def test_a_folder_that_cannot_be_made_is_named() -> None:
    with pytest.raises(HostError, match="/proc/none"):
        create_run(recipe(Path("/proc/none")))
