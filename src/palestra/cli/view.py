"""``palestra view``: runs in the browser, live and finished ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from palestra.cli.loop import run_until_stopped
from palestra.cli.terminal import say
from palestra.cli.waiting import end_of_stdin

DEFAULT_PORT = 8777
READY = "dashboard: "
"""Begins the line with the address."""
_NICENESS = 10


def view(
    runs: Annotated[Path, typer.Argument(help="Folder of runs, or one run.")] = Path("runs"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")
    ] = DEFAULT_PORT,
    environment: Annotated[
        str | None, typer.Option(help="Environment server to watch; live runs name their own.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="PALESTRA_TOKEN",
            help="What environment servers want, and what others than this machine must give.",
        ),
    ] = None,
    exit_with_parent: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Show runs in the browser: charts, live episodes, conversations, and why. Reads only."""
    from palestra.dashboard.server import is_loopback, serve_dashboard
    from palestra.dashboard.site import SiteOptions

    if exit_with_parent:
        os.nice(_NICENESS)  # whoever started us has better things to do

    run_until_stopped(
        lambda stop: serve_dashboard(
            SiteOptions(runs=runs, environment_url=environment, environment_token=token),
            host=host,
            port=port,
            token=None if is_loopback(host) else token,
            on_ready=lambda url: say(f"{READY}{url}"),
            stop=stop,
        ),
        watch=end_of_stdin if exit_with_parent else None,
        stopping="stopping",
    )
