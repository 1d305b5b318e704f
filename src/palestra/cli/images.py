"""``palestra images``: the images that tasks run in."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated

import orjson
import typer

from palestra.cli.image_progress import PullView
from palestra.cli.terminal import say
from palestra.environment.images.batch import bring_all
from palestra.environment.images.prefetch import EnsureImage
from palestra.environment.images.prune import PrunePlan, prune
from palestra.environment.images.pull import RESERVE_BYTES, ImagePuller
from palestra.environment.images.send import ImageSender
from palestra.environment.images.skopeo import Skopeo
from palestra.environment.sandboxes.engine import EngineBackend
from palestra.environment.sandboxes.engine_api import DOCKER, PODMAN
from palestra.environment.sandboxes.images import ImageStore, UnpackedImage
from palestra.environment.sandboxes.reaper import Leases
from palestra.errors import ConfigError
from palestra.records import HOST_IMAGE
from palestra.run.places import images_folder, state_folder
from palestra.tasks.source import load_tasks

app = typer.Typer(no_args_is_help=True, help="The images that tasks run in.")

_DAY_S = 86_400.0
_GB = 1_000_000_000
_ENGINES = {kind.name: kind for kind in (DOCKER, PODMAN)}

Folder = Annotated[
    Path | None, typer.Option("--images", help="Folder of the store; default: the user's cache.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command("pull")
def pull_images(
    tasks: Annotated[list[str], typer.Argument(help="Task files; all images that they name.")],
    backend: Annotated[
        str, typer.Option(help="For which sandboxes: bubblewrap, docker or podman.")
    ] = "bubblewrap",
    registry: Annotated[
        str | None,
        typer.Option(help="HOST[:PORT][/PATH] of a mirror that has all images (bubblewrap)."),
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Images fetched at the same time.")] = 4,
    reserve_gb: Annotated[
        float, typer.Option(min=0, help="Free space that must stay on the disk (bubblewrap).")
    ] = RESERVE_BYTES / _GB,
    as_json: AsJson = False,
    images: Folder = None,
) -> None:
    """Fetch every image that the tasks name; what is there already is not fetched again.

    A pull that was broken off goes on where it stood when the command is given again.
    """
    ensure = _ensurer(backend, registry, int(reserve_gb * _GB), images or images_folder())
    _bring(ensure, _named_by(tasks), at_once=at_once, as_json=as_json)


@app.command("send")
def send_images(
    tasks: Annotated[list[str], typer.Argument(help="Task files; all images that they name.")],
    to: Annotated[str, typer.Option(help="The engine: docker or podman.")],
    at_once: Annotated[int, typer.Option(min=1, help="Images sent at the same time.")] = 2,
    as_json: AsJson = False,
    images: Folder = None,
) -> None:
    """Hand images of the store to a container engine; what it has already is not sent again.

    So images that were made on this machine run on every backend, without a registry.
    """
    if to not in _ENGINES:
        raise ConfigError(f"--to {to!r} is none of {', '.join(_ENGINES)}")
    sender = ImageSender(ImageStore(images or images_folder()), _ENGINES[to])
    _bring(sender.ensure, _named_by(tasks), at_once=at_once, as_json=as_json)


@app.command("list")
def list_images(images: Folder = None, as_json: AsJson = False) -> None:
    """Print every image in the store: size, digest, age, last use.

    Sizes count shared layers in full, so they add up to more than the disk holds.
    """
    store = ImageStore(images or images_folder())
    if as_json:
        _echo_json([_row(store, image) for image in store.all()])
        return
    for image in store.all():
        size = f"{image.num_bytes / 1e6:.0f} MB" if image.num_bytes is not None else "-"
        digest = (image.digest or "-").removeprefix("sha256:")[:12]
        age, used = _days(image.added_at_s), _days(store.used_at_s(image.name))
        typer.echo(f"{image.name}  {size}  {digest}  added {age}  used {used}")


@app.command("prune")
def prune_images(
    older_than: Annotated[
        float | None, typer.Option(metavar="DAYS", min=0, help="Pulled longer ago than this.")
    ] = None,
    unused_for: Annotated[
        float | None, typer.Option(metavar="DAYS", min=0, help="Not started from since.")
    ] = None,
    max_gb: Annotated[
        float | None, typer.Option(min=0, help="Remove the longest unused until these fit.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: AsJson = False,
    images: Folder = None,
) -> None:
    """Remove pulled images, and layers that no image needs; never what a live sandbox uses.

    Without a bound only layers go that no image names. Registered folders stay.
    """
    plan = PrunePlan(
        older_than_s=None if older_than is None else older_than * _DAY_S,
        unused_for_s=None if unused_for is None else unused_for * _DAY_S,
        max_bytes=None if max_gb is None else int(max_gb * _GB),
    )
    leases = Leases(state_folder())
    done = asyncio.run(
        prune(
            ImageStore(images or images_folder()),
            plan,
            in_use=lambda: {name for lease in leases.all() for name in lease.layers},
            dry_run=dry_run,
        )
    )
    if as_json:
        body = {"images": done.images, "layers": done.num_layers, "bytes": done.num_bytes}
        _echo_json({**body, "dry_run": dry_run})
    for name in done.images if not as_json else ():
        typer.echo(name)
    size = f"{done.num_bytes / 1e6:.0f} MB"
    verb = "would go" if dry_run else "are gone"
    say(f"{len(done.images)} images, {done.num_layers} layers, {size} {verb}")


@app.command("add")
def add_image(
    name: Annotated[str, typer.Argument(help="Name by which tasks ask for it.")],
    rootfs: Annotated[Path, typer.Argument(help="An unpacked root file system, or its tarball.")],
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="KEY=VALUE", help="Environment variable.")
    ] = None,
    workdir: Annotated[str | None, typer.Option(help="Directory that commands start in.")] = None,
    images: Folder = None,
) -> None:
    """Register a root file system under the name of an image.

    A folder is used where it lies; a tarball (as from `docker export`) is unpacked.
    """
    store = ImageStore(images or images_folder())
    variables = dict(_variable(item) for item in env or ())
    if rootfs.is_dir():
        store.add(name, rootfs, env=variables, workdir=workdir)
    else:
        store.import_tar(name, rootfs, env=variables, workdir=workdir)
    say(f"{name} is in {images or images_folder()}")


def _named_by(tasks: list[str]) -> list[str]:
    """The images that the tasks of some files name, each once."""
    found = (
        task.image for source in tasks for task in load_tasks(source, on_bad_row="skip", report=say)
    )
    return list(dict.fromkeys(name for name in found if name != HOST_IMAGE))


def _bring(ensure: EnsureImage, names: list[str], *, at_once: int, as_json: bool) -> None:
    """Bring images and say how it goes; exit with 1 where one does not come."""
    with PullView(len(names)) as view:
        failures = asyncio.run(
            bring_all(
                ensure, names, num_at_once=at_once, on_progress=view.progress, on_done=view.done
            )
        )
    if as_json:
        failed = [{"image": item.image, "error": str(item.error)} for item in failures]
        _echo_json({"images": len(names), "failed": failed})
    say(f"{len(names) - len(failures)} of {len(names)} images are there")
    if failures:
        raise typer.Exit(1)


def _ensurer(backend: str, registry: str | None, reserve_bytes: int, folder: Path) -> EnsureImage:
    if backend in _ENGINES:
        if registry is not None:
            raise ConfigError(
                f"--registry works with bubblewrap: {backend} has its own setting for mirrors"
            )
        return EngineBackend(_ENGINES[backend], host_image="").ensure_image
    if backend != "bubblewrap":
        raise ConfigError(f"--backend {backend!r} is none of bubblewrap, docker, podman")
    return ImagePuller(
        ImageStore(folder), source=Skopeo(registry=registry), reserve_bytes=reserve_bytes
    ).ensure


def _row(store: ImageStore, image: UnpackedImage) -> dict[str, object]:
    return {
        "name": image.name,
        "bytes": image.num_bytes,
        "digest": image.digest,
        "added_at": image.added_at_s,
        "used_at": store.used_at_s(image.name),
        "layers": [str(layer) for layer in image.layers],
    }


def _days(at_s: float | None) -> str:
    return "-" if at_s is None else f"{max(0.0, time.time() - at_s) / _DAY_S:.1f} days ago"


def _echo_json(body: object) -> None:
    typer.echo(orjson.dumps(body, option=orjson.OPT_INDENT_2).decode())


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigError(f"--env {text!r} is not of the form KEY=VALUE")
    return name, value
