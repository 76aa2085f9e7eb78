"""`ridgeline pull MODEL`: fetch a model into the cache."""

from __future__ import annotations

from typing import Annotated

from ridgeline.cli.command import Argument
from ridgeline.cli.output import download_bar, size, tell
from ridgeline.config import CacheConfig


def pull(model: Annotated[str, Argument(metavar="MODEL", help="An alias or a Hub id.")]) -> None:
    """Fetch a model's files into the cache and print where they are, and an alias's licence."""
    from ridgeline.weights import hub
    from ridgeline.weights.aliases import ALIASES

    with download_bar(model) as progress:
        path = hub.resolve(model, cache=CacheConfig.from_env().path, progress=progress).path
    files = [path] if path.is_file() else [p for p in path.iterdir() if p.is_file()]
    tell(f"{path} ({size(sum(p.stat().st_size for p in files))})")
    if model in ALIASES:
        tell(f"licence: {ALIASES[model].license}")
