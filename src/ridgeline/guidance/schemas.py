"""JSON schemas as data: where the schemas within one are, by which keywords and references.

Must not know what keywords mean for an answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import Any
from urllib.parse import unquote

_ONE = (
    "additionalItems", "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not",
    "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_LISTS = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")  # keys: names
HOLDERS = (*_ONE, *_LISTS, *_NAMES)  # what is in them are schemas
_EXACT = ("enum", "const")  # what is in them is said as it is
_INDEX = re.compile(r"\+?0*[0-9]{1,9}")
_DEPTH = 128  # more than llguidance reads
_ALIKE = 16  # resources of one name that are looked at
_WIDE = 100  # characters of a pointer that are shown at its begin, and at its end
Change = Callable[[dict[str, Any]], dict[str, Any]]


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

    def shown(self) -> str:
        """The pointer, of a long one its begin and its end."""
        pointer = str(self)
        return pointer if len(pointer) <= 2 * _WIDE else f"{pointer[:_WIDE]}...{pointer[-_WIDE:]}"


Resource = tuple[Place, Any]  # a schema that pointers begin at
Found = tuple[Place, Any, Resource]  # a schema, and what it is in


class _References:
    """Where the references of a schema point to, each target once. What is beside a name's last part is not looked at,
    so that some more may be found than is meant."""

    def __init__(self, root: Resource) -> None:
        self._root = root
        self._named: dict[str, list[Resource]] = {}
        self._open: list[tuple[str, Resource]] = []
        self._followed: set[tuple[str, int]] = set()

    def read(self, place: Place, node: dict[str, Any], resource: Resource) -> Resource:
        """Take what a schema says of names and references. The resource that it is in, or is."""
        name, reference = node.get("$id"), node.get("$ref")
        if isinstance(name, str):
            resource = (place, node)
            self._named.setdefault(_last(name), []).append(resource)
        if isinstance(reference, str):
            self._open.append((reference, resource))
        return resource

    def targets(self) -> Iterator[Found]:
        """What the references point to that were read since."""
        todo, self._open = self._open, []
        for reference, resource in todo:
            other, _, end = reference.partition("#")
            pointer = unquote(end)
            starts = self._named.get(_last(other), [])[:_ALIKE] if other else [resource]
            for start in (*starts, self._root) if pointer.startswith("/") else ():
                if (pointer, id(start[1])) not in self._followed:
                    self._followed.add((pointer, id(start[1])))
                    yield from _pointed(pointer, start)


def _last(name: str) -> str:
    """The last part of a resource's name."""
    return name.partition("#")[0].rpartition("/")[2]


def _pointed(pointer: str, start: Resource) -> Iterator[Found]:
    place, node = start
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and key in node:
            place, node = Place(place, key), node[key]
        elif isinstance(node, list) and _INDEX.fullmatch(key) and int(key) < len(node):
            place, node = Place(place, int(key)), node[int(key)]
        else:
            return
    yield place, node, start


def places(schema: Any) -> Iterator[tuple[Place, Any]]:
    """(place, schema) of a schema and of those within it, breadth first, then of those that it refers to, wherever they
    are. Each is there once; what only stands where a schema should is too."""
    root = (Place(), schema)
    references, seen = _References(root), set[int]()
    level: list[Found] = [(*root, root)]
    while level:
        below: list[Found] = []
        for place, node, outer in level:
            if isinstance(node, dict):
                if id(node) in seen:
                    continue
                seen.add(id(node))
                resource = references.read(place, node, outer)
                below += ((*inner, resource) for inner in _inside(place, node))
            yield place, node
        level = below or list(references.targets())


def _inside(at: Place, node: dict[str, Any]) -> Iterator[tuple[Place, Any]]:
    """The schemas next within one."""
    for key, value in node.items():
        place = Place(at, key)
        if key in _NAMES and isinstance(value, dict):
            yield from ((Place(place, name), inner) for name, inner in value.items())
        elif key in _LISTS and isinstance(value, list):
            yield from ((Place(place, i), inner) for i, inner in enumerate(value))
        elif key in _ONE:
            yield place, value


def keywords(schema: Any) -> Iterator[tuple[Place, str, Any]]:
    """(place, keyword, value) of a schema and of those within it, and of those that it refers to."""
    for at, node in places(schema):
        for key, value in node.items() if isinstance(node, dict) else ():
            yield Place(at, key), key, value


def mapped(schema: Any, change: Change, leave: Collection[str] = ()) -> Any:
    """A schema with it and all within it changed, but for those under the keywords `leave`; inner ones first."""
    schemas = {id(node) for _, node in places(schema) if isinstance(node, dict)}

    def over(node: Any, depth: int) -> Any:
        if depth >= _DEPTH:
            return node
        if isinstance(node, list):
            return [over(inner, depth + 1) for inner in node]
        if not isinstance(node, dict):
            return node
        if id(node) not in schemas:
            return {key: over(value, depth + 1) for key, value in node.items()}
        kept = (*_EXACT, *leave)
        return change({key: value if key in kept else over(value, depth + 1) for key, value in node.items()})

    return over(schema, 0)
