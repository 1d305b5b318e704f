"""``palestra demo``: ``palestra train`` on the recipe ``demo``, and nothing else."""

from __future__ import annotations

from pathlib import Path

from palestra.cli.train import Overrides, Resume, Sandbox, train
from palestra.cli.view import DEFAULT_PORT
from palestra.cli.viewer import View, ViewPort

RECIPE = Path("demo")


def demo(
    overrides: Overrides = None,
    resume: Resume = None,
    sandbox: Sandbox = None,
    view: View = True,
    view_port: ViewPort = DEFAULT_PORT,
) -> None:
    """Train the demo policy for a few minutes, measured before and after."""
    train(None if resume else RECIPE, overrides, resume, sandbox, view=view, view_port=view_port)
