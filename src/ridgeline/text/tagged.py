"""Tool calls whose parts stand between marks of their own: arguments as tagged text, or JSON behind a marked name.

Tagged text says nothing of types, so a value is what the tool's schema takes it for; strings are put out as they come.
It must not know tokens, templates or any API's objects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ridgeline.text.calls import Call
from ridgeline.text.json_stream import BLANKS, Malformed, Reading, expect, read_value, skip_blanks

_KEY = 256  # characters of a key
_HEAD = 128  # of what stands before a call's JSON, beside its name
_DEPTH = 16  # to which a schema's type is looked for


class Tags(msgspec.Struct, frozen=True):
    """What stands around names, keys and values, and at the `end`; `lines`: each value has lines of its own."""

    name: tuple[str, str]
    key: tuple[str, str]
    value: tuple[str, str]
    end: str
    lines: bool = False


def read_tagged(tags: Tags) -> Callable[[Call], Reading[None]]:
    """A name, and members of its arguments as keys and values."""

    def read(call: Call) -> Reading[None]:
        char = yield from skip_blanks()
        if char == tags.name[0][:1]:  # else this is a further call, and its mark has been read
            yield from _read_mark(tags.name[0], char)
            char = yield
        name = ""
        while char not in BLANKS and char not in '<>"':
            name += char
            if len(name) > call.longest:
                raise Malformed
            char = yield
        call.take_name(name)
        if tags.name[1]:
            yield from _read_mark(tags.name[1], char)
            char = ""
        separator = "{"
        while (yield from _read_one_of((tags.key[0], tags.end), char)) != tags.end:
            key = yield from _read_key(tags)
            call.put(f"{separator}{json.dumps(key, ensure_ascii=False)}: ")
            yield from _read_tagged_value(call, tags, key)
            separator, char = ", ", ""
        if call.given:
            call.put("}")
        call.end()

    return read


def read_headed(mark: str, head: str, tail: tuple[str, ...]) -> Callable[[Call], Reading[None]]:
    """JSON arguments behind a `head`, a pattern with the name in it, and then the marks of the `tail`. A `mark` opens
    each call behind what opens them all."""
    pattern = re.compile(head)

    def read(call: Call) -> Reading[None]:
        char = yield from skip_blanks()
        if char == mark[0]:
            yield from _read_mark(mark, char)
            char = yield
        text = ""
        while char != "{":
            text += char
            if len(text) > call.longest + _HEAD:
                raise Malformed
            char = yield
        found = pattern.fullmatch(text.strip(BLANKS))
        if found is None:
            raise Malformed
        call.take_name(found["name"])
        yield from read_value(char, call.put)
        for behind in tail:
            char = yield from skip_blanks()
            yield from _read_mark(behind, char)

    return read


def _read_mark(mark: str, first: str) -> Reading[None]:
    expect(mark[0], first)
    for wanted in mark[1:]:
        expect(wanted, (yield))


def _read_one_of(marks: tuple[str, ...], first: str) -> Reading[str]:
    """The mark that comes next, behind blanks."""
    text = yield from skip_blanks(first)
    while text not in marks:
        if not any(mark.startswith(text) for mark in marks):
            raise Malformed
        text += yield
    return text


def _read_key(tags: Tags) -> Reading[str]:
    key, behind = "", tags.key[1]
    while not key.endswith(behind):
        key += yield
        if len(key) > _KEY:
            raise Malformed
    if tags.value[0]:
        char = yield from skip_blanks()
        yield from _read_mark(tags.value[0], char)
    return key[: -len(behind)].strip(BLANKS)


def _read_tagged_value(call: Call, tags: Tags, key: str) -> Reading[None]:
    """Text through the mark behind it, put out as JSON; without the line breaks that are its marks'."""
    properties = call.schema.get("properties")
    kinds = kinds_of(properties.get(key) if isinstance(properties, Mapping) else None, call.schema)
    streamed = kinds == {"string"}
    whole, held, begun = "", "", False
    ends = (tags.value[1], "\n" + tags.value[1]) if tags.lines else (tags.value[1],)
    if streamed:
        call.put('"')
    while held not in ends:
        held += yield
        if tags.lines and not begun and held == "\n":
            held = ""
        begun = True
        while not any(end.startswith(held) for end in ends):
            if streamed:
                call.put(json.dumps(held[0], ensure_ascii=False)[1:-1])
            else:
                whole += held[0]
            held = held[1:]
    call.put('"' if streamed else spelled(whole, kinds))


def kinds_of(schema: Any, root: Mapping[str, Any]) -> frozenset[str]:
    """The JSON types that a schema allows, as far as it names any."""
    return _Kinds(root).of(schema)


class _Kinds:
    """Looks for types through references, each of them once: they may go in circles."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._followed: set[str] = set()

    def of(self, schema: Any, depth: int = 0) -> frozenset[str]:
        if not isinstance(schema, Mapping) or depth > _DEPTH:
            return frozenset()
        kinds, choices, reference = schema.get("type"), schema.get("enum"), schema.get("$ref")
        if isinstance(kinds, str):
            return frozenset([kinds])
        if isinstance(kinds, list):
            return frozenset(kind for kind in kinds if isinstance(kind, str))
        if isinstance(choices, list) and choices and all(isinstance(choice, str) for choice in choices):
            return frozenset(["string"])
        if isinstance(reference, str) and reference not in self._followed:
            self._followed.add(reference)
            return self.of(_referred(reference, self._root), depth + 1)
        branches = schema.get("anyOf") or schema.get("oneOf")
        found = [self.of(branch, depth + 1) for branch in branches] if isinstance(branches, list) else []
        return frozenset().union(*found) if all(found) else frozenset()


def _referred(reference: str, root: Mapping[str, Any]) -> Any:
    found: Any = root
    for name in reference.removeprefix("#/").split("/"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def spelled(text: str, kinds: frozenset[str]) -> str:
    """JSON of a value that stands as text: what its `kinds` allow it to be, or else a string. Templates show models
    Python's truth values, so they write those too."""
    word = text.strip(BLANKS)
    word = {"True": "true", "False": "false", "None": "null"}.get(word, word)
    try:
        kind = _kind(json.loads(word, parse_constant=_refuse))
    except (ValueError, RecursionError):
        kind = "string"
    if kind == "string" or (kinds and kind not in kinds and not (kind == "integer" and "number" in kinds)):
        return json.dumps(text, ensure_ascii=False)
    return word


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _kind(value: Any) -> str:
    """The JSON type of a value."""
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")
