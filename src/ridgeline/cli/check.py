"""`ridgeline config check FILE`: whether `ridgeline serve --config FILE` would take its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ridgeline.cli.command import Argument, parse
from ridgeline.cli.settings import read
from ridgeline.errors import ConfigError


def config(
    action: Annotated[str, Argument(metavar="ACTION", help="check.")],
    file: Annotated[str, Argument(metavar="FILE", help="Settings of `ridgeline serve`, in TOML.")],
) -> None:
    """Check a file of settings without loading a model."""
    from ridgeline.cli.serve import serve

    if action != "check":
        raise ConfigError(f"config has no action {action[:40]!r}; there is check")
    given = read(serve, Path(file))
    serve(**parse("serve", serve, [] if "model" in given else ["any"], {**given, "check": True}))
