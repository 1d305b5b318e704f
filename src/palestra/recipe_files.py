"""Recipes from TOML files, with ``section.key=value`` laid over them.

Unknown keys are errors that name the nearest known one.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from palestra.config import Recipe
from palestra.config_base import Section
from palestra.errors import ConfigError, HostError


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and lay ``section.key=value`` overrides over it.

    Raises:
        ConfigError: the file is no TOML, a key is unknown or a value is wrong.
        HostError: the file cannot be read.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no recipe {path}", hint="recipes/ holds some") from None
    except OSError as error:
        raise HostError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    return parse_recipe(data, overrides, origin=str(path))


def recipe_data(recipe: Recipe) -> dict[str, Any]:
    """A recipe as nested dicts, as :func:`parse_recipe` reads them and TOML can hold them."""
    return _drop_absent(recipe.model_dump(mode="json"))


def parse_recipe(
    data: dict[str, Any], overrides: Sequence[str] = (), *, origin: str = "recipe"
) -> Recipe:
    """Validate a recipe given as nested dicts, with overrides laid over it.

    Raises:
        ConfigError: names every wrong key and its nearest known one.
    """
    for override in overrides:
        _override(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        raise ConfigError(f"{origin}: " + "; ".join(lines)) from None


def change_recipe(recipe: Recipe, changes: Mapping[str, Any], *, origin: str) -> Recipe:
    """Lay values over a recipe, by ``section.key``; ``None`` leaves what is there.

    Raises:
        ConfigError: a value is wrong.
    """
    data = recipe.model_dump()
    for key, value in changes.items():
        if value is not None:
            section, leaf = key.split(".")
            data[section][leaf] = value
    return parse_recipe(data, origin=origin)


def recipe_keys(
    section: type[Section] = Recipe, prefix: str = ""
) -> Iterator[tuple[str, str, str]]:
    """Yield (dotted key, default, description) of every key; the help text of ``train``."""
    for name, info in section.model_fields.items():
        sub = _section_of(info.annotation)
        if sub is not None:
            yield from recipe_keys(sub, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _show(info.get_default()), info.description or ""


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r} is not of the form section.key=value")
    *sections, leaf = key.strip().split(".")
    for name in sections:
        data = data.setdefault(name, {})
        if not isinstance(data, dict):
            raise ConfigError(f"--set {override!r}: {name} is not a section")
    data[leaf] = _value(text.strip())


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string, as on any command line


def _explain(item: Any) -> str:
    where = [str(part) for part in item["loc"]]
    key = ".".join(where)
    if item["type"] != "extra_forbidden":
        return f"{key or 'recipe'}: {item['msg'].removeprefix('Value error, ')}"
    section: type[Section] | None = Recipe
    for name in where[:-1]:
        section = _section_of(section.model_fields[name].annotation) if section else None
    known = list(section.model_fields) if section else []
    near = difflib.get_close_matches(where[-1], known, n=1)
    return f"unknown key {key}, " + (
        f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
    )


def _section_of(annotation: Any) -> type[Section] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _show(value: Any) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _drop_absent(data: dict[str, Any]) -> dict[str, Any]:
    # TOML has no null: an absent key says the same.
    return {
        key: _drop_absent(value) if isinstance(value, dict) else value
        for key, value in data.items()
        if value is not None
    }
