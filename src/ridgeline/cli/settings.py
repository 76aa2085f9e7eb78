"""Settings from a TOML file: options by their names on the command line, which wins over it. Strict.

A file says nothing that the command line could not say, so a name that is no option is an error.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from ridgeline.cli.command import Handler, Option, item, reader
from ridgeline.errors import ConfigError

CONFIG = Option(
    "Settings as `name = value` with these options' names, in TOML; options given here win.", metavar="FILE"
)
_MOST = 1 << 20


def given(handler: Handler, words: Sequence[str]) -> dict[str, Any]:
    """What the file after --config says; {} for a handler without that option, or where it is not used."""
    parameters = inspect.signature(handler, eval_str=True).parameters
    if not any(get_args(p.annotation)[1] is CONFIG for p in parameters.values()):
        return {}
    files = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    files += [file for word, file in zip(words, words[1:], strict=False) if word == "--config"]
    return read(handler, Path(files[-1])) if files else {}


def read(handler: Handler, path: Path) -> dict[str, Any]:
    """The handler's arguments that a file gives. ConfigError names the file and the name at fault."""
    known = {
        _name(p): p
        for p in inspect.signature(handler, eval_str=True).parameters.values()
        if get_args(p.annotation)[1] is not CONFIG
    }
    import difflib

    found = {}
    for name, value in _load(path).items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else "they are as in `ridgeline serve --help`, without --"
            raise ConfigError(f"{path.name}: there is no setting {name[:80]!r}; {hint}")
        parameter = known[name]
        try:
            found[parameter.name] = _value(parameter, value)
        except (ValueError, argparse.ArgumentTypeError) as wrong:
            raise ConfigError(f"{path.name}: {name}: {wrong}") from None
    return found


def _name(parameter: inspect.Parameter) -> str:
    """As in the file: the flag without its dashes."""
    declared = get_args(parameter.annotation)[1]
    return (getattr(declared, "flag", "") or parameter.name.replace("_", "-")).removeprefix("--")


def _load(path: Path) -> Mapping[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    try:
        with path.open("rb") as file:
            text = file.read(_MOST + 1)
        if len(text) > _MOST:
            raise ConfigError(f"{path.name} has over {_MOST} bytes; settings are shorter")
        loaded: dict[str, Any] = tomllib.loads(text.decode())
        return loaded
    except OSError as wrong:
        raise ConfigError(f"the settings cannot be read: {wrong}") from None
    except (ValueError, RecursionError) as wrong:  # TOML's and UTF-8's errors too
        raise ConfigError(f"{path.name} is not TOML: {wrong}") from None


def _value(parameter: inspect.Parameter, value: Any) -> Any:
    kind, declared = get_args(parameter.annotation)
    one, repeats = item(kind)
    if not repeats:
        return _one(declared, one, value)
    if not isinstance(value, list):
        raise ValueError(f"must be a list such as [{value!r}]")
    return [_one(declared, one, v) for v in value]


def _one(declared: Any, one: type, value: Any) -> Any:
    sized = getattr(declared, "parser", None) is not None and isinstance(value, str)
    allowed = (int, float) if one is float else (one,)
    if not sized and type(value) not in allowed:
        raise ValueError(f"must be {one.__name__}, is {value!r}")
    return value if one is bool or not isinstance(declared, Option) else reader(declared, one)(str(value))
