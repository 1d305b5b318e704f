"""``palestra``: the commands, and the one place that turns errors into a line and a code."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated, NoReturn

import typer

import palestra
from palestra.cli import data, images
from palestra.cli.certify import certify_tasks
from palestra.cli.demo import demo
from palestra.cli.doctor import doctor
from palestra.cli.evaluate import evaluate
from palestra.cli.export import export
from palestra.cli.forge import forge
from palestra.cli.replay import replay_episode
from palestra.cli.report import report
from palestra.cli.serve import serve
from palestra.cli.terminal import say_error
from palestra.cli.train import epilog, train
from palestra.cli.up import down, up
from palestra.cli.view import view
from palestra.cli.warmstart import warmstart
from palestra.cli.why import why
from palestra.errors import HostError, NoIsolation, PalestraError

INTERRUPTED = 130  # 128 + SIGINT, as shells report it

app = typer.Typer(
    name="palestra",
    help="Train coding agents with reinforcement learning on real software-engineering tasks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo)
app.command("train", epilog=epilog())(train)
app.command("warmstart")(warmstart)
app.command("eval")(evaluate)
app.command("export")(export)
app.command("certify")(certify_tasks)
app.command("forge")(forge)
app.command("report")(report)
app.command("why")(why)
app.command("replay")(replay_episode)
app.command("view")(view)
app.command("doctor")(doctor)
app.command("serve")(serve)
app.command("up")(up)
app.command("down")(down)
app.add_typer(data.app, name="data")
app.add_typer(images.app, name="images")


def _version(show: bool) -> None:
    if show:
        typer.echo(f"palestra {palestra.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """Run a command; known trouble is one line on stderr and an exit code that is not 0."""
    try:
        app()
    except NoIsolation as error:
        say_error(NoIsolation(error.message, hint=_without_isolation()))
        sys.exit(error.exit_code)
    except PalestraError as error:
        say_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except OSError as error:
        say_error(HostError.from_os(error, doing="the system refused"))
        sys.exit(HostError.exit_code)
    sys.exit(0)


def _without_isolation() -> str:
    command = shlex.join(["palestra", *sys.argv[1:], "--sandbox", "local"])
    return (
        f"{command} goes on without isolation: the model's commands then run as you, on your "
        "files and your network, with only time-outs and ulimit to bound them"
    )
