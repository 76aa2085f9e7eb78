"""`ridgeline models`: what can be named, and what the cache holds."""

from __future__ import annotations

from typing import Any

from ridgeline.cli.options import AsJson
from ridgeline.cli.output import emit_json, size, table
from ridgeline.config import CacheConfig


def models(json: AsJson = False) -> None:
    """List the known names and the models in the cache."""
    cache = CacheConfig.from_env().path
    rows = listing(cache)
    if json:
        return emit_json({"cache": str(cache), "models": rows})
    shown = [
        [row["name"], row["kind"], size(row["bytes"]) if row["cached"] else "-", row["path"] or "-"] for row in rows
    ]
    table(f"models, cached in {cache}", ["name", "kind", "size", "path"], shown, folds=(0, 3))


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
