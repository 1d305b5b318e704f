"""Removing images from the store, and the layers that no image needs any more."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from palestra.environment.images.layers import num_bytes_below
from palestra.environment.images.locks import locked
from palestra.environment.sandboxes.images import ImageStore, UnpackedImage
from palestra.environment.sandboxes.prepared import PreparedLayers, identity_of

SETTLED_S = 600.0
"""An image that was used this recently may be about to carry a sandbox."""

_LOCK_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePlan:
    """What goes: an image goes when any of the bounds that are set says so.

    Attributes:
        older_than_s: seconds since it was pulled.
        unused_for_s: seconds since a sandbox last started from it.
        max_bytes: of all layers; the longest unused images go until they fit.
        settle_s: an image used within these last seconds stays whatever the bounds say.
    """

    older_than_s: float | None = None
    unused_for_s: float | None = None
    max_bytes: int | None = None
    settle_s: float = SETTLED_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What went, or would go: names of images, number of layers, bytes on the disk."""

    images: tuple[str, ...]
    num_layers: int
    num_bytes: int


async def prune(
    store: ImageStore,
    plan: PrunePlan,
    *,
    in_use: Callable[[], Collection[str]],
    dry_run: bool = False,
) -> Pruned:
    """Remove what ``plan`` says; registered folders and unpacked tarballs stay.

    Args:
        store: from where.
        plan: what.
        in_use: tells the folder names of layers on which live sandboxes stand.
        dry_run: only say what would go.

    Raises:
        HostError: images are being pulled into the store.
    """
    if not (store.folder / "l").is_dir():
        if not dry_run:
            _drop_prepared(store, in_use)
        return Pruned(images=(), num_layers=0, num_bytes=0)
    async with locked(store.lock, timeout_s=_LOCK_TIMEOUT_S):
        doomed = _choose(store, plan, set(in_use()))
        if not dry_run:
            for image in doomed:
                store.forget(image.name)
        # Asked again: a sandbox may have started before its image was forgotten.
        orphans = _orphans(store, {image.name for image in doomed}, set(in_use()))
        num_bytes = sum(map(num_bytes_below, orphans))
        if not dry_run:
            _remove(store, orphans)
            _drop_prepared(store, in_use)
    return Pruned(
        images=tuple(image.name for image in doomed), num_layers=len(orphans), num_bytes=num_bytes
    )


def _drop_prepared(store: ImageStore, in_use: Callable[[], Collection[str]]) -> None:
    identities = set(map(identity_of, store.all()))
    PreparedLayers(store.folder).drop_orphans(identities, in_use())


def _choose(store: ImageStore, plan: PrunePlan, in_use: set[str]) -> list[UnpackedImage]:
    now_s = time.time()
    pulled = [image for image in store.all() if image.digest is not None]
    pulled.sort(key=lambda image: store.used_at_s(image.name))
    free = [
        image
        for image in pulled
        if now_s - store.used_at_s(image.name) >= plan.settle_s
        # A sandbox holds all layers of its image; some of them alone are another's.
        and not all(layer.name in in_use for layer in image.layers)
    ]
    doomed = [image for image in free if _is_due(store, plan, image, now_s)]
    if plan.max_bytes is not None:
        rest = [image for image in pulled if image not in doomed]
        for image in [image for image in free if image not in doomed]:
            if _size(rest) <= plan.max_bytes:
                break
            rest.remove(image)
            doomed.append(image)
    return doomed


def _is_due(store: ImageStore, plan: PrunePlan, image: UnpackedImage, now_s: float) -> bool:
    age_s = now_s - (image.added_at_s or 0.0)
    unused_s = now_s - store.used_at_s(image.name)
    return (plan.older_than_s is not None and age_s > plan.older_than_s) or (
        plan.unused_for_s is not None and unused_s > plan.unused_for_s
    )


def _size(images: list[UnpackedImage]) -> int:
    layers = {layer for image in images for layer in image.sources}
    return sum(num_bytes_below(layer) for layer in layers if layer.is_dir())


def _orphans(store: ImageStore, doomed: set[str], in_use: set[str]) -> list[Path]:
    kept = {
        layer.name
        for image in store.all()
        if image.name not in doomed
        for layer in (*image.layers, *image.sources)
    }
    folder = store.folder / "l"
    return [
        path
        for path in folder.iterdir()
        if path.is_dir() and path.name not in kept and path.name not in in_use
    ]


def _remove(store: ImageStore, orphans: list[Path]) -> None:
    folder = store.folder / "l"
    for path in orphans:
        # Renamed first: nobody may find a layer that is half gone.
        doomed = path.with_name(f".gone-{path.name}")
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    for marker in folder.glob("*.blob"):
        if not store.layer(marker.read_text()).is_dir():
            marker.unlink()
    # Nobody pulls now, so this is what killed pulls left.
    for left in (store.folder / "pulls").glob("*"):
        shutil.rmtree(left, ignore_errors=True)
