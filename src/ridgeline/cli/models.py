"""`ridgeline models`: what can be named, and what the cache holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from ridgeline.cli.command import Exit, Option
from ridgeline.cli.options import AsJson, parse_bytes
from ridgeline.cli.output import emit_json, size, table, tell
from ridgeline.config import CacheConfig

_DAMAGED = 1
_Keep = Option(
    "Remove packed weights of models that are gone, then the longest unused beyond SIZE (0 removes all).",
    metavar="SIZE",
    parser=parse_bytes,
    default="nothing is removed",
)


def models(
    prune: Annotated[int | None, _Keep] = None,
    verify: Annotated[bool, Option("Read all packed weights and compare their sums.", flag="--verify")] = False,
    json: AsJson = False,
) -> None:
    """List the known names, the models in the cache, and their packed weights. Exit status 1: some are damaged."""
    from ridgeline.weights import packed

    cache = CacheConfig.from_env().path
    removed = [] if prune is None else packed.prune(cache / packed.FOLDER, prune)
    rows, kept = listing(cache), packed_listing(cache, verify)
    if json:
        emit_json({"cache": str(cache), "models": rows, "packed": kept, "removed": [str(path) for path in removed]})
    else:
        _print(cache, rows, kept)
        for path in removed:
            tell(f"removed {path}")
    if any(row.get("damaged") for row in kept):
        raise Exit(_DAMAGED)


def _print(cache: Path, rows: list[dict[str, Any]], kept: list[dict[str, Any]]) -> None:
    shown = [
        [row["name"], row["kind"], size(row["bytes"]) if row["cached"] else "-", row["path"] or "-"] for row in rows
    ]
    table(f"models, cached in {cache}", ["name", "kind", "size", "path"], shown, folds=(0, 3))
    if kept:
        state = {None: "-", False: "good", True: "damaged"}
        shown = [[row["source"], size(row["bytes"]), row["used"], state[row["damaged"]]] for row in kept]
        table("packed weights", ["model", "size", "last used", "sums"], shown)


def packed_listing(cache: Path, verify: bool) -> list[dict[str, Any]]:
    """One row per file of packed weights, longest unused first; "damaged" is null unless they are verified."""
    from datetime import datetime, timezone

    from ridgeline.weights import packed

    return [
        {
            "source": f.header.source,
            "bytes": f.nbytes,
            "used": datetime.fromtimestamp(f.used, timezone.utc).isoformat(" ", "minutes"),
            "path": str(f.path),
            "damaged": not packed.verify(f) if verify else None,
        }
        for f in packed.listing(cache / packed.FOLDER)
    ]


def listing(cache: Any) -> list[dict[str, Any]]:
    """One row per alias, random model and further cached model."""
    from ridgeline.models.random import SHAPES
    from ridgeline.weights import hub
    from ridgeline.weights.aliases import ALIASES

    cached = {m.name: m for m in hub.cached(cache)}
    kinds = {**dict.fromkeys(ALIASES, "alias"), **dict.fromkeys(SHAPES, "random")}
    rows = []
    for name in [*kinds, *(n for n in cached if n not in kinds)]:
        found = cached.get(name)
        rows.append(
            {
                "name": name,
                "kind": kinds.get(name, "hub"),
                "cached": found is not None,
                "bytes": found.bytes if found else 0,
                "path": str(found.path) if found else None,
            }
        )
    return rows
