"""The command line."""

from palestra.cli.main import main

__all__ = ["main"]
