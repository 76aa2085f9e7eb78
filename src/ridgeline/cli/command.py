"""Subcommands from the signatures of their handlers: the declarations `Option` and `Argument`, and the parsing.

Built on argparse, which loads in a few milliseconds: whoever runs a prompt waits for this before anything else.
Knows nothing of models; every parameter of a handler is annotated as Annotated[type, declaration].
"""

from __future__ import annotations

import argparse
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Union, get_args, get_origin

import msgspec

Handler = Callable[..., None]
_WIDTH = 100  # of help


class BadParameter(ValueError):
    """A value that an option does not take, in words for the user."""


class Exit(SystemExit):
    """End the command with an exit status; nothing more is said."""


class Option(msgspec.Struct, frozen=True):
    """`--name VALUE`. `flag` is the name where it is not the parameter's own, `alias` another one; `minimum` bounds
    numbers; `default` is shown in the help instead of the real one; `parser` makes the value of the text."""

    help: str
    flag: str = ""
    minimum: int | None = None
    default: str | None = None
    metavar: str | None = None
    parser: Callable[[str], Any] | None = None
    alias: str = ""


class Argument(msgspec.Struct, frozen=True):
    """A value told by its place."""

    help: str
    metavar: str


def parse(name: str, handler: Handler, words: Sequence[str], given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The handler's keyword arguments; those that `words` leave open are as `given`, or else its own defaults.

    Usage errors and --help end the process as argparse does: status 2 and 0.
    """
    given = given or {}
    parameters = inspect.signature(handler, eval_str=True).parameters.values()
    places = [d.metavar for p in parameters if isinstance(d := get_args(p.annotation)[1], Argument)]
    parser = argparse.ArgumentParser(
        f"ridgeline {name}",
        usage=" ".join([f"ridgeline {name}", *places, "[OPTIONS]"]),
        description=_plain(inspect.getdoc(handler)),
        formatter_class=partial(argparse.HelpFormatter, width=_WIDTH),  # asking the terminal for it takes imports
        allow_abbrev=False,
    )
    for parameter in parameters:
        _add(parser, parameter.replace(default=None) if parameter.name in given else parameter)
    values = vars(parser.parse_args(words))
    return values | {name: value for name, value in given.items() if values[name] is None or values[name] is False}


def _add(parser: argparse.ArgumentParser, parameter: inspect.Parameter) -> None:
    kind, declared = get_args(parameter.annotation)
    required = parameter.default is inspect.Parameter.empty
    if isinstance(declared, Argument):
        more = {} if required else {"nargs": "?", "default": parameter.default}
        parser.add_argument(parameter.name, metavar=declared.metavar, help=_plain(declared.help), **more)
        return
    flag, default = declared.flag or "--" + parameter.name.replace("_", "-"), None if required else parameter.default
    if kind is bool:
        parser.add_argument(flag, dest=parameter.name, action="store_true", help=_plain(declared.help))
        return
    one, repeats = item(kind)
    shown = declared.default if declared.default is not None else "none" if default in (None, "") else str(default)
    parser.add_argument(
        *filter(None, (flag, declared.alias)),
        dest=parameter.name,
        required=required,
        default=default,
        action="append" if repeats else "store",
        type=reader(declared, one),
        metavar=declared.metavar or one.__name__.upper(),
        help=_plain(declared.help if required else f"{declared.help} [default: {shown}]"),
    )


def item(kind: Any) -> tuple[type, bool]:
    """The type of one value, and whether the option may be repeated: of int, int | None, list[str] | None."""
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(k for k in get_args(kind) if k is not types.NoneType)
    return (get_args(kind)[0], True) if get_origin(kind) is list else (kind, False)


def reader(option: Option, one: type) -> Callable[[str], Any]:
    """From the text of one value; argparse.ArgumentTypeError or ValueError where it is none."""

    def read(text: str) -> Any:
        try:
            value = option.parser(text) if option.parser else one(text)
        except BadParameter as wrong:
            raise argparse.ArgumentTypeError(str(wrong)) from None
        if option.minimum is not None and value < option.minimum:
            raise argparse.ArgumentTypeError(f"{value} is below {option.minimum}")
        return value

    read.__name__ = one.__name__  # argparse's word for what it could not read
    return read


def _plain(text: str | None) -> str:
    return (text or "").replace("%", "%%")
