"""The table of subcommands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from ridgeline import __version__
from ridgeline.cli.bench import bench
from ridgeline.cli.chat import chat
from ridgeline.cli.evaluate import evaluate
from ridgeline.cli.hardware import hardware
from ridgeline.cli.inspect import inspect
from ridgeline.cli.models import models
from ridgeline.cli.pull import pull
from ridgeline.cli.roofline import roofline
from ridgeline.cli.run import run
from ridgeline.cli.serve import serve

app = typer.Typer(
    name="ridgeline",
    help="Fast, honest LLM inference and serving: what it does, how fast it could be, what the speed-up cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "chat": chat,
    "serve": serve,
    "pull": pull,
    "models": models,
    "inspect": inspect,
    "roofline": roofline,
    "bench": bench,
    "hardware": hardware,
    "eval": evaluate,
}
for name, handler in _COMMANDS.items():
    app.command(name)(handler)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"ridgeline {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options before the subcommand."""
