"""`ridgeline keys add|list|remove`: the API keys in the file that `ridgeline serve --api-keys FILE` reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ridgeline.cli.command import Argument, Option
from ridgeline.cli.output import say, table, tell
from ridgeline.errors import ConfigError

if TYPE_CHECKING:
    from ridgeline.server.keys import Key


def keys(
    action: Annotated[str, Argument(metavar="ACTION", help="add, list or remove.")],
    file: Annotated[str, Option("The key file, as `ridgeline serve` takes it.", flag="--api-keys", metavar="FILE")],
    name: Annotated[str, Argument(metavar="NAME", help="Of the key, and of its tenant: add and remove need it.")] = "",
    scope: Annotated[list[str] | None, Option("user, metrics or admin; repeatable.", default="user")] = None,
    rate: Annotated[int, Option("Requests a minute; 0: any number.")] = 0,
    tokens: Annotated[int, Option("Tokens a minute, of prompts and answers; 0: any number.")] = 0,
    concurrency: Annotated[int, Option("Requests at once; 0: any number.")] = 0,
    watermark: Annotated[str, Option("Whether its answers are marked: must, may (where asked) or never.")] = "may",
) -> None:
    """Add, list or remove API keys. A new key is shown once, and kept as a hash; a running server takes notice."""
    from ridgeline.server.keys import POLICIES, SCOPES, new_key, read_keys, write_keys

    if action not in ("add", "list", "remove"):
        raise ConfigError(f"keys has no action {action[:40]!r}; there are add, list and remove")
    path = Path(file)
    there = read_keys(path) if path.exists() or action != "add" else ()
    if action == "list":
        return _list(there)
    found = any(key.name == name for key in there)
    if not name or found == (action == "add"):
        known = "a key of that name is there already" if found else f"give the NAME of a key to {action}"
        raise ConfigError(f"{known}; {path.name} has {', '.join(key.name for key in there) or 'none'}")
    if action == "remove":
        return write_keys(path, [key for key in there if key.name != name])
    if unknown := [s for s in scope or () if s not in SCOPES]:
        raise ConfigError(f"there is no scope {unknown[0][:40]!r}; there are {', '.join(SCOPES)}")
    if watermark not in POLICIES:
        raise ConfigError(f"there is no watermark policy {watermark[:40]!r}; there are {', '.join(POLICIES)}")
    limits = {"rate": rate, "tokens": tokens, "concurrency": concurrency, "watermark": watermark}
    secret, key = new_key(name, scopes=tuple(scope or ("user",)), **limits)
    write_keys(path, [*there, key])
    say(f"the key of {name}, shown only now; clients send it as Authorization: Bearer, or as x-api-key:")
    tell(secret)


def _list(keys: tuple[Key, ...]) -> None:
    def limit(number: int) -> str:
        return str(number) if number else "-"

    rows = [
        [k.name, ", ".join(k.scopes), limit(k.rate), limit(k.tokens), limit(k.concurrency), k.watermark] for k in keys
    ]
    table("API keys", ["name", "scopes", "requests/min", "tokens/min", "at once", "watermark"], rows)
