"""What this machine has, what is missing, and what to do about it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from palestra.config import Recipe
from palestra.run.doctor import addresses, machine
from palestra.run.doctor.findings import Finding, Level

__all__ = ["Finding", "Level", "examine"]


async def examine(recipe: Recipe) -> AsyncIterator[Finding]:
    """Look at everything that ``recipe`` may need, one finding after the other."""
    for finding in machine.versions():
        yield finding
    async for finding in machine.sandboxes(recipe):
        yield finding
    for finding in (*machine.images(recipe), *machine.disks(recipe)):
        yield finding
    yield await machine.gpu()
    yield await machine.hub()
    async for finding in addresses.both_ways(recipe):
        yield finding
