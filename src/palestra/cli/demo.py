"""``palestra demo``: ``palestra train`` on the recipe ``demo``, and nothing else."""

from __future__ import annotations

from pathlib import Path

from palestra.cli.train import Overrides, Resume, Sandbox, train

RECIPE = Path("demo")


def demo(overrides: Overrides = None, resume: Resume = None, sandbox: Sandbox = None) -> None:
    """Train the demo policy for a few minutes, measured before and after."""
    train(None if resume else RECIPE, overrides, resume, sandbox)
