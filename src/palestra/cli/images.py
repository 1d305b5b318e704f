"""``palestra images``: the unpacked images that bubblewrap runs tasks in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palestra.cli.terminal import say
from palestra.environment.sandboxes.images import ImageStore
from palestra.errors import ConfigError
from palestra.run.places import images_folder

app = typer.Typer(no_args_is_help=True, help="Unpacked images.")

Folder = Annotated[
    Path | None, typer.Option("--images", help="Folder of the store; default: the user's cache.")
]


@app.command("list")
def list_images(images: Folder = None) -> None:
    """Print the name of every image in the store."""
    for name in ImageStore(images or images_folder()).names():
        typer.echo(name)


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


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigError(f"--env {text!r} is not of the form KEY=VALUE")
    return name, value
