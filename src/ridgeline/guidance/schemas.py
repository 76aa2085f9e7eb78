"""JSON schemas as data: where the schemas within one are, and which keywords an error of llguidance is about.

Must not know what any keyword means.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import Any
from urllib.parse import unquote

import msgspec

_DATA = ("enum", "const", "default", "examples", "example")  # values here are no schemas
_NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # keys here are names
_DEPTH = 128  # more than llguidance reads
_SHOWN = 5  # pointers
_BEGIN = 400  # characters of a pattern of which the rest need not be shown
Change = Callable[[dict[str, Any]], dict[str, Any]]
About = Callable[[str, Any], bool]


def mapped(node: Any, change: Change, leave: Collection[str] = (), depth: int = 0) -> Any:
    """A schema with it and all within it changed, but for those under the keywords `leave`; inner ones first."""
    if depth >= _DEPTH:
        return node
    if isinstance(node, list):
        return [mapped(inner, change, leave, depth + 1) for inner in node]
    if not isinstance(node, dict):
        return node

    def inside(key: str, value: Any) -> Any:
        if key in _DATA or key in leave:
            return value
        if key in _NAMES and isinstance(value, dict):
            return {name: mapped(inner, change, leave, depth + 1) for name, inner in value.items()}
        return mapped(value, change, leave, depth + 1)

    return change({key: inside(key, value) for key, value in node.items()})


class Place:
    """A place in a schema, which str() makes a JSON pointer: pointers of all places would take its length squared."""

    __slots__ = ("_above", "_key")

    def __init__(self, above: Place | None = None, key: str | int = "") -> None:
        self._above, self._key = above, key

    def __str__(self) -> str:
        keys, at = list[str](), self
        while at._above is not None:
            keys.append(str(at._key).replace("~", "~0").replace("/", "~1"))
            at = at._above
        return "".join(f"/{key}" for key in reversed(keys))


def keywords(schema: Any) -> Iterator[tuple[Place, str, Any]]:
    """(place, keyword, value) of a schema and of those within it, breadth first."""
    level = [(Place(), schema)]
    while level:
        below: list[tuple[Place, Any]] = []
        for at, node in level:
            for key, value in node.items() if isinstance(node, dict) else ():
                place = Place(at, key)
                yield place, key, value
                if key in _NAMES and isinstance(value, dict):
                    below += [(Place(place, name), inner) for name, inner in value.items()]
                elif isinstance(value, list) and key not in _DATA:
                    below += [(Place(place, i), inner) for i, inner in enumerate(value)]
                elif key not in _DATA:
                    below.append((place, value))
        level = below


def unsupported(schema: Any, said: str) -> str:
    """JSON pointers of the keywords that llguidance's error is about; "" if there are none."""
    about = next((make(found) for pattern, make in _ERRORS if (found := re.search(pattern, said))), None)
    places = [place for place, key, value in keywords(schema) if about(key, value)] if about is not None else []
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    return f"{', '.join(map(str, places[:_SHOWN]))}{more}"


def _unknown(found: re.Match[str]) -> About:
    names = set(re.findall(r'"([^"]*)"', found[1]))
    return lambda key, value: key in names


def _named(found: re.Match[str]) -> About:
    return lambda key, value: key == found[1]


def _valued(name: str) -> Callable[[re.Match[str]], About]:
    return lambda found: lambda key, value: key == name and value == found[1]


def _unexpected(found: re.Match[str]) -> About:
    """`Expected string for 'pattern', got 7`, whose end may be cut off."""
    return lambda key, value: key == found[1] and msgspec.json.encode(value).decode().startswith(found[2])


def _place(found: re.Match[str]) -> About:
    """A reference to a place or a name in the schema, where it has none."""
    end = f"#{unquote(found[1])}"
    return lambda key, value: key == "$ref" and isinstance(value, str) and unquote(value).endswith(end)


def _resource(found: re.Match[str]) -> About:
    """A reference to another schema, of which the whole name is told."""

    def about(key: str, value: Any) -> bool:
        other = value.partition("#")[0].removeprefix("./") if key == "$ref" and isinstance(value, str) else ""
        return bool(other) and found[1].endswith(other)

    return about


def _pattern(found: re.Match[str]) -> About:
    """A pattern as it is shown: with its whitespace made one space, and behind it marks below what is wrong; of a long
    one only its begin."""

    def shown(pattern: str) -> bool:
        text = " ".join(pattern.replace("\n", "\\n").split())
        if len(found[1]) >= _BEGIN and text.startswith(found[1]):
            return True
        return found[1] == text or re.match(r"\s*\^+ error: ", found[1].removeprefix(text)) is not None

    def about(key: str, value: Any) -> bool:
        if key == "patternProperties" and isinstance(value, dict):
            return any(map(shown, value))
        return key == "pattern" and isinstance(value, str) and shown(value)

    return about


def _overlapping(found: re.Match[str]) -> About:
    """Two patterns of names that match the same."""

    def about(key: str, value: Any) -> bool:
        patterns = value if key == "patternProperties" and isinstance(value, dict) else ()
        return {found[1], found[2]} <= {" ".join(pattern.split()) for pattern in patterns}

    return about


_ERRORS: tuple[tuple[str, Callable[[re.Match[str]], About]], ...] = (  # llguidance's, and what tells their keywords
    (r"Unimplemented keys: \[(.*?)\]", _unknown),
    (r"Unknown format: (\S+)", _valued("format")),
    (r"Invalid type: (\S+)", _valued("type")),
    (r"^(\w+) constraints are not supported", _named),
    (r"Expected [\w ]+ for '([^']+)', got (.+)", _unexpected),
    (r"Pointer '(.*)' does not exist", _place),
    (r"Anchor '(.*)' does not exist", _place),
    (r"Resource '(.*?)' is not present", _resource),
    (r"(\$ref) must be a string", lambda found: lambda key, value: key == "$ref" and not isinstance(value, str)),
    (r"regex parse error: (.*)", _pattern),
    (r"in regex /(.*)/$", _pattern),
    (r"patternProperty regexes /(.*)/ and /(.*)/ are not disjoint", _overlapping),
)
