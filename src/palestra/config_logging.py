"""The section of a recipe about where else its metrics go."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from palestra.config_base import Section

LoggerName = Literal["tensorboard", "trackio", "wandb"]


class LoggingSection(Section):
    """Loggers beside events.jsonl and metrics.csv, which are always written."""

    to: tuple[LoggerName, ...] = Field(
        (), description="Any of tensorboard, trackio, wandb; each needs its package."
    )
    project: str = Field("palestra", min_length=1, description="Project in wandb and trackio.")

    @model_validator(mode="after")
    def _once_each(self) -> LoggingSection:
        if len(set(self.to)) < len(self.to):
            raise ValueError("to: a logger is named twice")
        return self
