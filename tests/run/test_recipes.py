from __future__ import annotations

from pathlib import Path

import pytest
from transformers import Qwen2Config, Qwen3Config
from typer.testing import CliRunner

from palestra.cli.main import app
from palestra.errors import ConfigError
from palestra.recipe_files import load_recipe
from palestra.run.recipes import find_recipe

REPOSITORY = Path(__file__).parent.parent.parent


def test_a_name_is_the_recipe_that_comes_along() -> None:
    shipped = find_recipe(Path("smoke"))
    assert load_recipe(shipped).name == "smoke"
    assert shipped.samefile(REPOSITORY / "recipes" / "smoke.toml"), "one place, no copies"


def test_a_file_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("smoke").write_text('name = "mine"')
    assert load_recipe(find_recipe(Path("smoke"))).name == "mine"


@pytest.mark.parametrize("name", ["smok", "recipes/smoke", "/smoke", "smoke.tom", "../smoke"])
def test_what_is_neither_is_said_with_what_there_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"there is no recipe .*smoke") as raised:
        find_recipe(Path(name))
    assert "smoke" in str(raised.value.hint)


# --- every recipe that comes along ----------------------------------------------

GPU_GIB = 79.1  # what an H100 of 80 GB has
MODELS = {
    "Qwen3-4B": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28}
    | {"num_attention_heads": 12, "num_key_value_heads": 2},
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}
    | {"num_attention_heads": 14, "num_key_value_heads": 2},
}


def folder_like(model: str, folder: Path) -> Path:
    """The config.json of a model that a recipe names, by its size."""
    name = next(name for name in MODELS if name in model.replace("qwen3-4B", "Qwen3-4B"))
    kind = Qwen3Config if name == "Qwen3-4B" else Qwen2Config
    kind(vocab_size=151_936, tie_word_embeddings=True, **MODELS[name]).save_pretrained(folder)
    return folder


RECIPES = sorted((REPOSITORY / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_runs_natively_on_one_gpu_of_80_gb(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    overrides = ["backend=native"]
    if recipe.model.path.partition("?")[0] not in ("tiny", "demo"):
        overrides.append(f"model.path={folder_like(recipe.model.path, tmp_path)}")
    options = [word for override in overrides for word in ("--set", override)]
    shown = CliRunner().invoke(
        app, ["train", str(path), "--dry-run", "--gpu-gib", str(GPU_GIB), *options]
    )
    assert shown.exit_code == 0, f"{shown.output}\n{shown.exception}"
    if len(overrides) > 1:
        assert "needed of the GPU" in shown.stdout


def test_the_recipes_are_known_by_name() -> None:
    names = {path.stem for path in RECIPES}
    assert names >= {"demo", "forge-1.5b", "qwen3-4b-instruct", "qwen3-4b-mis", "swe-gym-lite"}
    assert names >= {"qwen2.5-coder-0.5b-katas", "smoke"}
