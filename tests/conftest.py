"""What holds for all tests."""

from __future__ import annotations

import os


def pytest_configure() -> None:
    """Commands that tests start show no dashboard unless they ask for it."""
    os.environ.setdefault("PALESTRA_VIEW", "0")
