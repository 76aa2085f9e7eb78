"""The table of subcommands. A handler's module is imported when its command is asked for."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib import import_module

from ridgeline import __version__
from ridgeline.cli.command import Exit, Handler, parse
from ridgeline.cli.output import say, tell
from ridgeline.cli.settings import given

_ABOUT = "Fast, honest LLM inference and serving: what it does, how fast it could be, what the speed-up cost."
_COMMANDS = {  # name: module, and function where that is called otherwise
    "run": "run",
    "chat": "chat",
    "serve": "serve",
    "keys": "keys",
    "config": "check.config",
    "batch": "batch",
    "pull": "pull",
    "models": "models",
    "inspect": "inspect",
    "roofline": "roofline",
    "bench": "bench",
    "hardware": "hardware",
    "eval": "evaluate",
}
_USAGE_ERROR = 2


def run(words: Sequence[str]) -> None:
    """Run one command line, without the program's name. Raises SystemExit for help and usage errors."""
    first = words[0] if words else "--help"
    if first in ("-h", "--help"):
        return tell(_help())
    if first == "--version":
        return tell(f"ridgeline {__version__}")
    if first not in _COMMANDS:
        say(f"ridgeline: no command {first!r}; there are {', '.join(_COMMANDS)}")
        raise Exit(_USAGE_ERROR)
    handler = _handler(first)
    handler(**parse(first, handler, words[1:], given(handler, words[1:])))


def _handler(command: str) -> Handler:
    module, _, name = _COMMANDS[command].partition(".")
    found: Handler = getattr(import_module(f"ridgeline.cli.{module}"), name or module)
    return found


def _help() -> str:
    docs = {name: (inspect.getdoc(_handler(name)) or "").partition("\n")[0] for name in _COMMANDS}
    commands = "\n".join(f"  {name:<10}{doc}" for name, doc in docs.items())
    return f"""Usage: ridgeline COMMAND [OPTIONS]

{_ABOUT}

Commands:
{commands}

Options:
  --version   Show the version and exit.
  -h, --help  Show this, or a command's options, and exit."""
