from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from palestra.config import Recipe
from palestra.config_training import OverlongSection, TrainingSection
from palestra.recipe_files import load_recipe, parse_recipe, recipe_data

RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"loss": "ppo"}, "Input should be"),
        ({"advantage": "gae"}, "Input should be"),
        ({"aggregation": "sum"}, "Input should be"),
        ({"kl": "k4"}, "Input should be"),
        ({"clip_low": 1.5}, "less than or equal to 1"),
        ({"loss": "gspo", "clip": "cispo"}, "single tokens"),
        ({"loss": "cispo", "ratio": "sequence"}, "single tokens"),
        ({"clip": "none", "clip_high": 0.3}, "no meaning with clip = none"),
        ({"loss": "grpo", "clip": "cispo"}, "name clip_low and clip_high"),
        ({"loss": "grpo", "ratio": "sequence"}, "name clip_low and clip_high"),
        ({"loss": "rloo", "clip": "ppo", "clip_high": 0.2}, "name clip_low and clip_high"),
        ({"loss": "dapo", "fixed_length": 100}, "no meaning with aggregation token_mean"),
    ],
)
def test_combinations_without_a_meaning_are_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TrainingSection(**keys)


def test_other_combinations_are_named_whole() -> None:
    section = TrainingSection(
        loss="grpo", clip="cispo", clip_low=1.0, clip_high=2.0, aggregation="fixed_length"
    )
    objective = section.objective
    assert (objective.clip, objective.clip_high, objective.advantage) == ("cispo", 2.0, "group_std")
    unclipped = TrainingSection(loss="gspo", clip="none").objective
    assert (unclipped.ratio, unclipped.clip) == ("sequence", "none")


def test_a_penalty_cannot_begin_below_nothing() -> None:
    with pytest.raises(ValidationError, match="above max_tokens"):
        OverlongSection(max_tokens=10, buffer=11)


def test_what_is_written_down_of_a_recipe_reads_as_it_was() -> None:
    recipe = parse_recipe(
        {
            "training": {
                "loss": "dr_grpo",
                "overlong": {"max_tokens": 10, "buffer": 4},
                "correction": {"mode": "icepop", "reject": "geometric", "reject_high": 1.1},
            }
        }
    )
    assert recipe.training.correction.high == 5.0
    assert parse_recipe(recipe_data(recipe)) == recipe


@pytest.mark.parametrize("name", ["demo", "smoke"])
def test_small_recipes_train_with_dapos_token_mean_and_bounds(name: str) -> None:
    objective = load_recipe(RECIPES / f"{name}.toml").training.objective
    assert objective == Recipe().training.objective
    assert (objective.aggregation, objective.clip_low, objective.clip_high) == (
        "token_mean",
        0.2,
        0.28,
    )


@pytest.mark.parametrize("name", ["qwen3-4b-mis", "qwen3-4b-instruct"])
def test_the_recipes_of_miles_take_means_over_sequences(name: str) -> None:
    training = load_recipe(RECIPES / f"{name}.toml").training
    assert (training.loss, training.objective.aggregation) == ("grpo", "sequence_mean")
    assert (training.objective.clip_low, training.objective.clip_high) == (0.2, 0.28)
    assert (training.kl, training.kl_coef) == ("k3", 0.01)
