"""What every section of a recipe is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A strict, frozen part of the recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)
