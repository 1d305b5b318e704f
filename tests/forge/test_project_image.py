"""A project's image: made once, left alone while it is used, without copies of the project.

The packages come from a folder of wheels made here, so nothing is fetched.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import forge_projects
import pytest

from palestra.environment.sandboxes.images import ImageStore
from palestra.environment.sandboxes.protocol import SandboxBackend
from palestra.errors import TaskError
from palestra.forge.environment import prepare_project
from palestra.forge.records import Project
from palestra.recipe_files import parse_recipe
from palestra.run.world import open_sandboxes

ROOTFS = os.environ.get("PALESTRA_TEST_ROOTFS", "")

pytestmark = [
    pytest.mark.skipif(
        not ROOTFS, reason="$PALESTRA_TEST_ROOTFS names no unpacked tree (tools/test_engines.sh)"
    ),
    pytest.mark.timeout(300),
]


@dataclass(kw_only=True)
class Place:
    """A store, a folder of the forge and an index of wheels."""

    folder: Path
    backend: SandboxBackend
    said: list[str] = field(default_factory=list)

    @property
    def store(self) -> ImageStore:
        return ImageStore(self.folder / "images")

    @property
    def layers(self) -> set[str]:
        return {path.name for path in (self.store.folder / "l").iterdir()}

    def wheel(self, name: str, files: dict[str, str], version: str = "8.0") -> None:
        info = f"{name}-{version}.dist-info"
        about = {f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"}
        about[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        written = {**files, **about}
        written[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in written)
        wheels = self.folder / "wheels"
        wheels.mkdir(exist_ok=True)
        with zipfile.ZipFile(wheels / f"{name}-{version}-py3-none-any.whl", "w") as archive:
            for path, text in written.items():
                archive.writestr(path, text)

    async def prepare(self, project: Path | str) -> Project:
        return await prepare_project(
            str(project),
            store=self.store,
            backend=self.backend,
            base=ROOTFS,
            folder=self.folder / "work",
            say=self.said.append,
        )

    def site(self, project: Project) -> Path:
        layer = self.store.resolve(project.image).layers[-1]
        return next(layer.rglob("palestra-project.pth")).parent


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("PALESTRA_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    options = ["sandbox.backend=bubblewrap", f"sandbox.images={tmp_path / 'images'}"]
    backend, _ = await open_sandboxes(parse_recipe({}, options, origin="options"))
    made = Place(folder=tmp_path, backend=backend)
    made.wheel("pytest", {"pytest/__init__.py": "", "py.py": ""})
    return made


def needing(folder: Path, line: str) -> Path:
    """The honest project with a line in its metadata."""
    project = forge_projects.honest(folder)
    path = project / "pyproject.toml"
    path.write_text(path.read_text().replace("[tool", f"{line}\n\n[tool", 1))
    for command in (("add", "-A"), ("-c", "user.name=t", "-c", "user.email=t", "commit", "-qm1")):
        subprocess.run(["git", "-C", str(project), *command], check=True)
    return project


async def test_no_prune_comes_between_and_one_makes_it_however_it_is_called(place: Place) -> None:
    project = forge_projects.honest(place.folder / "toylib")
    pruned: list[str] = []

    def prune_at(word: str) -> None:
        place.said.append(word)
        with place.store.lock.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                pruned.append(word)
            except BlockingIOError:
                pass

    names = (str(project), f"{project}/", str(project / "tests"))
    made = await asyncio.gather(
        *(
            prepare_project(
                name,
                store=place.store,
                backend=place.backend,
                base=ROOTFS,
                folder=place.folder / "work",
                say=prune_at,
            )
            for name in names
        )
    )
    assert len([word for word in place.said if "making" in word]) == 1, place.said
    assert not pruned, "a prune could have taken the layer that was being made"
    assert made[0] == made[1] == made[2]
    assert len(place.layers) == 1


async def test_a_layer_that_may_be_stood_on_is_never_replaced(place: Place) -> None:
    project = await place.prepare(forge_projects.honest(place.folder / "toylib"))
    first = place.layers
    record = next((place.folder / "work" / "made").glob("*/made.json"))
    record.unlink()
    assert await place.prepare(place.folder / "toylib") == project
    assert place.layers == first, "a whole image was made again"
    place.store.forget(project.image)
    assert (await place.prepare(place.folder / "toylib")).image == project.image
    assert first < place.layers, "the layer of a running sandbox was removed"
    drafts = [name for name in place.store.names() if "draft" in name]
    assert not drafts, "an image that is not whole can be started from"


async def test_another_version_beside_the_project_is_another_image_of_that_name(
    place: Place,
) -> None:
    project = await place.prepare(forge_projects.honest(place.folder / "toylib"))
    digest = place.store.resolve(project.image).digest
    place.store.forget(project.image)
    place.wheel("pytest", {"pytest/__init__.py": "", "py.py": ""}, version="8.1")
    other = await place.prepare(place.folder / "toylib")
    assert (other.image, other.requirements) == (project.image, ("pytest==8.1",))
    assert place.store.resolve(project.image).digest != digest


async def test_another_package_of_the_projects_name_is_removed(place: Place) -> None:
    place.wheel("fork", {"toylib/__init__.py": "", "toylib/tools.py": "x = 1\n", "fork.py": ""})
    folder = needing(place.folder / "toylib", 'dependencies = ["fork"]')
    project = await place.prepare(folder)
    assert project.requirements == ("fork==8.0", "pytest==8.0")
    assert (place.site(project) / "fork.py").is_file()
    assert not (place.site(project) / "toylib").exists(), "it is imported in place of the project"
    assert "toylib: without another package of its name: toylib" in place.said


async def test_a_distribution_that_carries_a_copy_is_left_out_or_the_project_is(
    place: Place,
) -> None:
    folder = needing(place.folder / "toylib", 'optional-dependencies = {test = ["carrier"]}')
    copied = (folder / "toylib" / "tools.py").read_text().replace("    ", "  ")
    place.wheel("carrier", {"carrier/_vendor/things.py": f"# toylib\n{copied}"})
    project = await place.prepare(folder)
    assert project.requirements == ("pytest==8.0",)
    assert not (place.site(project) / "carrier").exists()
    assert any(word.endswith("its tests ask for: carrier") for word in place.said), place.said
    needy = needing(place.folder / "needy", 'dependencies = ["carrier"]')
    with pytest.raises(TaskError, match=r"carrier/_vendor/things\.py is a copy of its toylib/"):
        await place.prepare(needy)
