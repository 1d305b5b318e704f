"""Images of a container engine that hide what the repositories of others must not show.

One is the image it was made from and a layer more, named by its key. Its seal is in its labels,
which nothing inside can change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from palestra.environment.sandboxes.engine_api import EngineApi
from palestra.environment.sandboxes.history import PROCEDURE, Seal, layer_key
from palestra.environment.sandboxes.protocol import SandboxSpec
from palestra.errors import ImageError, SandboxStartError, UnverifiedHistory

REPOSITORY = "localhost/palestra-history"
"""Under this name the engine keeps prepared images, with their keys as tags."""
COMMIT_LABEL = "palestra.history.commit"
PROCEDURE_LABEL = "palestra.history.procedure"
STATE_LABEL = "palestra.history.state"
SOURCE_LABEL = "palestra.history.source"

_AT_ONCE = 2  # images; each takes a core and memory


Labelling = Callable[[Seal], Mapping[str, str]]
"""The labels that keep a seal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedImage:
    """The id of a prepared image, and what a sandbox on it must look like."""

    image_id: str
    seal: Seal


class PreparedImages:
    """The prepared images of one engine.

    Two processes that make the same one at once do it twice; the later one counts, and the
    other is dropped as soon as nobody runs on it.
    """

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def get(
        self,
        api: EngineApi,
        spec: SandboxSpec,
        build: Callable[[str, Labelling], Awaitable[object]],
    ) -> PreparedImage:
        """The prepared image for ``spec``; ``build`` makes it if there is none.

        Args:
            api: of the engine.
            spec: names image, folder and commit.
            build: makes the image of that name, with the labels of its seal.

        Raises:
            ImageError: the engine lacks the image.
            UnverifiedHistory: the labels are broken.
        """
        source = await image_id(api, spec.image)
        name = f"{REPOSITORY}:{layer_key(spec, source)}"
        async with self._locks.setdefault(name, asyncio.Lock()):
            found = await api.find_image(name)
            if found is None:
                async with self._slots:
                    await build(name, lambda seal: _labels(seal, source))
                found = await api.find_image(name)
            if found is None:
                raise SandboxStartError(f"the engine lost the image {name} that it just made")
            return PreparedImage(image_id=found.image_id, seal=_seal(found.labels))


async def image_id(api: EngineApi, image: str) -> str:
    """The engine's id of ``image``.

    Raises:
        ImageError: the engine does not have it.
    """
    found = await api.find_image(image)
    if found is None:
        raise ImageError(f"the engine has no image {image}", hint="pull it first")
    return found.image_id


async def drop_outdated(api: EngineApi) -> int:
    """Remove prepared images of another procedure, or whose source or name is gone.

    Returns:
        How many; one that a container runs on stays for the time being.
    """
    num_dropped = 0
    sources: dict[str, bool] = {}  # one has many
    for image in await api.labelled_images(SOURCE_LABEL):
        source = image.labels[SOURCE_LABEL]
        if source not in sources:
            found = await api.find_image(source)
            sources[source] = found is not None and bool(found.names)
        is_current = image.names and image.labels.get(PROCEDURE_LABEL) == str(PROCEDURE)
        if not is_current or not sources[source]:
            # By name, where it has one: another may stand on it.
            num_dropped += await api.remove_image((*image.names, image.image_id)[0])
    return num_dropped


def _labels(seal: Seal, source: str) -> dict[str, str]:
    return {
        COMMIT_LABEL: seal.commit,
        PROCEDURE_LABEL: str(seal.procedure),
        STATE_LABEL: seal.state_sha256,
        SOURCE_LABEL: source,
    }


def _seal(labels: Mapping[str, str]) -> Seal:
    try:
        return Seal(
            commit=labels[COMMIT_LABEL],
            procedure=int(labels[PROCEDURE_LABEL]),
            state_sha256=labels[STATE_LABEL],
        )
    except (KeyError, ValueError):
        raise UnverifiedHistory("a prepared image of the engine has no seal") from None
