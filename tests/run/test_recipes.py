from __future__ import annotations

from pathlib import Path

import pytest

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
