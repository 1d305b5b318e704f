"""Recipes by name: those that come with the package, and files."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from palestra.errors import ConfigError


def find_recipe(recipe: Path) -> Path:
    """The file of a recipe: ``recipe`` itself, or the shipped one of that name.

    A file goes before a shipped recipe of the same name.

    Raises:
        ConfigError: there is neither; names the shipped ones.
    """
    if recipe.exists():
        return recipe
    shipped = _shipped()
    if recipe.name == str(recipe) and recipe.name in shipped:
        return shipped[recipe.name]
    raise ConfigError(
        f"there is no recipe {recipe}",
        hint=f"give a TOML file, or one that comes along: {', '.join(sorted(shipped))}",
    )


def _shipped() -> dict[str, Path]:
    folder = Path(str(files("palestra").joinpath("recipes")))
    return {path.stem: path for path in folder.glob("*.toml")}
