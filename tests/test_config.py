from __future__ import annotations

from pathlib import Path

import pytest

from palestra.config import Recipe
from palestra.errors import ConfigError
from palestra.recipe_files import load_recipe, parse_recipe, recipe_data, recipe_keys

RECIPES = Path(__file__).parent.parent / "recipes"


def test_an_unknown_key_names_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"unknown key training.lrr, did you mean lr\?"):
        parse_recipe({"training": {"lrr": 1.0}})


def test_every_wrong_key_is_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"rollouts.group_size.*training.steps"):
        parse_recipe({"training": {"steps": -1}, "rollouts": {"group_size": 1}})


def test_overrides_lie_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("name = 'a'\n[training]\nsteps = 1\n[training.correction]\nlow = 0.25\n")
    recipe = load_recipe(
        path, ["training.steps=7", "name=b", "training.correction.mode=clip", "training.lr=1e-3"]
    )
    assert recipe.training.steps == 7
    assert recipe.name == "b"
    assert (recipe.training.correction.mode, recipe.training.correction.low) == ("clip", 0.25)
    assert recipe.training.lr == 1e-3


@pytest.mark.parametrize(
    ("override", "says"),
    [("training.steps", "section.key=value"), ("name.x=1", "not a section"), ("=1", "section.key")],
)
def test_a_malformed_override_is_explained(tmp_path: Path, override: str, says: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text("name = 'a'\n")
    with pytest.raises(ConfigError, match=says):
        load_recipe(path, [override])


def test_a_missing_or_broken_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no recipe"):
        load_recipe(tmp_path / "nowhere.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[training\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_recipe(broken)


def test_every_key_has_a_description() -> None:
    keys = list(recipe_keys())
    assert {"training.correction.veto", "tasks.train", "seed"} <= {key for key, _, _ in keys}
    assert not [key for key, _, description in keys if not description]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda p: p.name)
def test_shipped_recipes_load(path: Path) -> None:
    assert load_recipe(path).name


def test_sections_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="no room for a prompt"):
        parse_recipe({"sampling": {"max_new_tokens": 64}, "model": {"max_context": 64}})
    with pytest.raises(ConfigError, match="top_p"):
        parse_recipe({"sampling": {"top_p": 0.9}})


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ({"urls": ["http://a:1"]}, "local is no server"),
        ({"kind": "sglang"}, "either urls"),
        ({"kind": "vllm", "urls": ["http://a:1"], "launch": True}, "either urls"),
        ({"kind": "sglang", "urls": ["a:1"]}, "no http:// address"),
        ({"kind": "sglang", "urls": ["http://a:1", "http://a:1"]}, "named twice"),
        ({"kind": "sglang", "launch": {"server": 2}}, "did you mean servers?"),
        ({"kind": "sglang", "launch": {"memory_share": 1.5}}, "engine.launch.memory_share"),
        ({"kind": "tgi"}, "engine.kind"),
    ],
)
def test_an_engine_is_in_one_place(engine: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_recipe({"engine": engine})
    assert says in str(raised.value)


def test_launch_may_be_said_in_short_and_survives_being_written_down() -> None:
    recipe = parse_recipe({"engine": {"kind": "sglang", "launch": True}})
    assert recipe.engine.launch is not None
    assert recipe.engine.launch.servers == 1
    assert parse_recipe(recipe_data(recipe)) == recipe
    more = parse_recipe({}, ["engine.kind=sglang", "engine.launch.servers=2"])
    assert more.engine.launch is not None
    assert more.engine.launch.servers == 2


def test_slips_need_turns_to_be_taken_back_in() -> None:
    with pytest.raises(ConfigError, match=r"takes 10 turns, more than agent\.step_limit"):
        parse_recipe({"warmstart": {"steps": 1, "max_slips": 2}, "agent": {"step_limit": 9}})
    for warmstart, turns in (({"steps": 1, "max_slips": 2}, 10), ({"max_slips": 2}, 9)):
        assert parse_recipe({"warmstart": warmstart, "agent": {"step_limit": turns}})


def test_the_best_checkpoints_need_a_score_that_evaluations_give() -> None:
    heldout = {"heldout": "katas:heldout?seed=1&n=4"}
    of = Recipe.model_validate
    of({"tasks": heldout, "evaluation": {"every": 2}, "checkpoints": {"keep_best": 2}})
    chosen = {"every": 2, "modes": ["greedy"]}
    greedy = of({"tasks": heldout, "evaluation": chosen, "checkpoints": {"keep_best": 1}})
    assert greedy.score == "greedy/solve_rate"
    four = {"every": 2, "attempts": 4}
    passed = {"keep_best": 1, "best_by": "sampled/pass@4"}
    best = of({"tasks": heldout, "evaluation": four, "checkpoints": passed})
    assert best.score == "sampled/pass@4"
    for broken, words in (
        ({"checkpoints": {"keep_best": 1}}, "needs tasks.heldout"),
        ({"tasks": heldout, "checkpoints": {"keep_best": 1}}, "evaluation.every"),
        ({"evaluation": chosen, "checkpoints": {"best_by": "sampled/solve_rate"}}, "no sampled"),
        ({"evaluation": four, "checkpoints": {"best_by": "sampled/pass@3"}}, "no pass@3"),
        ({"evaluation": four, "checkpoints": {"best_by": "greedy/pass@4"}}, "no pass@4"),
        ({"checkpoints": {"best_by": "sampled/loss"}}, "pattern"),
    ):
        with pytest.raises(ValueError, match=words):
            of(broken)
