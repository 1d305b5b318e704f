"""A sandbox in each place that can start one here; ``places`` says which there are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from places import PLACES, SPEC, Place, require

from palestra.environment.sandboxes.protocol import Sandbox, SandboxBackend, SandboxSpec


@pytest.fixture(scope="module", params=PLACES, ids=lambda place: str(place.name))
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place that works here; one trial start for all tests."""
    assert isinstance(request.param, Place)
    require(request.param, tmp_path_factory.mktemp("trial"))
    return request.param


@pytest.fixture
def spec(place: Place) -> SandboxSpec:
    return replace(SPEC, image=place.image)


@pytest.fixture
def backend(place: Place, tmp_path: Path) -> SandboxBackend:
    return place.make(tmp_path)


@pytest.fixture
async def box(backend: SandboxBackend, spec: SandboxSpec) -> AsyncIterator[Sandbox]:
    async with backend.start(spec) as sandbox:
        yield sandbox


@pytest.fixture
def needs_git(place: Place) -> None:
    if not place.has_git:
        pytest.skip("there is no git, bash or Python in it")


@pytest.fixture
def isolated(place: Place) -> None:
    if place.name == "local":
        pytest.skip("local isolates nothing, and says so")
