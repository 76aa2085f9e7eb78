"""JSON schemas as data: pointers of what llguidance refuses, and schemas within schemas."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from letters import Letters
from ridgeline.errors import InvalidRequest
from ridgeline.guidance.compiler import Compiler
from ridgeline.guidance.grammar import Grammar
from ridgeline.guidance.schemas import keywords, mapped

COMPILER = Compiler(Letters(), 512)


@pytest.mark.parametrize(
    ("inner", "place"),
    [
        ({"$ref": "#/$defs/no~1where"}, "$ref"),
        ({"$ref": "#/$defs/no%20where"}, "$ref"),
        ({"$ref": "#nobody"}, "$ref"),
        ({"$ref": "https://example.org/x.json#/a"}, "$ref"),
        ({"$ref": "./other.json"}, "$ref"),
        ({"$ref": 7}, "$ref"),
        ({"patternProperties": {"^a": {}, "^ab": {}}}, "patternProperties"),
        ({"patternProperties": {"^x": {}, "a(?=b)": {}}}, "patternProperties"),
        ({"patternProperties": 7}, "patternProperties"),
        ({"patternProperties": {"^x": {"type": "string", "pattern": "(?!b)"}}}, "patternProperties/^x/pattern"),
        ({"type": "string", "pattern": "^(?=a)b"}, "pattern"),
        ({"type": "string", "pattern": "(?<!x)b  c"}, "pattern"),
        ({"type": "string", "pattern": "\\bfoo\\b"}, "pattern"),
        ({"type": "string", "pattern": "(a)\\1"}, "pattern"),
        ({"type": "string", "pattern": f"{'a' * 600}(?=b)"}, "pattern"),
        ({"type": "string", "pattern": "a\n(?=b)"}, "pattern"),
        ({"type": "string", "pattern": ["a"]}, "pattern"),
        ({"type": "string", "minLength": -1}, "minLength"),
        ({"type": "strin"}, "type"),
        ({"allOf": [{"type": "string"}, {"pattern": "a(?!b)"}]}, "allOf/1/pattern"),
    ],
    ids=str,
)
def test_what_cannot_be_followed_is_named_by_its_pointer(inner, place):
    others = {"type": "string", "pattern": "(a)b"}, {"$ref": "#/$defs/here"}, {"patternProperties": {"^y": {}}}
    properties = {"a/b": inner, **{f"o{i}": other for i, other in enumerate(others)}}
    schema = {"type": "object", "properties": properties, "required": [*properties], "$defs": {"here": {}}}
    with pytest.raises(InvalidRequest) as refused:
        COMPILER.check(Grammar("json_schema", json.dumps(schema)), 100)
    assert f" at /properties/a~1b/{place}: not supported (" in str(refused.value)


def test_patterns_of_names_are_as_many_as_are_quickly_compared():
    """Each with each, also where they are in several places."""

    def of(*counts: int) -> Grammar:
        places = {f"{at}": {"patternProperties": {f"^p{i}x": {} for i in range(n)}} for at, n in enumerate(counts)}
        return Grammar("json_schema", json.dumps({"type": "object", "properties": places}))

    assert COMPILER.check(of(128), 100) == COMPILER.check(of(60, 60, 60), 100) == []
    with pytest.raises(InvalidRequest, match="at /properties/0/patternProperties: not supported above 128 patterns"):
        COMPILER.check(of(129), 100)
    with pytest.raises(InvalidRequest, match="at /properties/1/patternProperties: not supported above 128 patterns"):
        COMPILER.check(of(100, 100), 100)


def test_schemas_are_changed_from_within_and_nothing_else():
    seen = []

    def change(node):
        seen.append(node.get("title"))
        return {**node, "changed": True}

    schema = {
        "title": 0, "properties": {"enum": {"title": 1}, "x": {"items": [{"title": 2}]}}, "enum": [{"title": 9}],
        "default": {"title": 9}, "allOf": [{"title": 8}], "anyOf": [{"title": 3}], "not": {"title": 4},
        "required": ["x"],
    }  # fmt: skip
    found = mapped(schema, change, leave=["allOf"])
    assert sorted(title for title in seen if title is not None) == [0, 1, 2, 3, 4] and seen[-1] == 0
    assert found["properties"]["enum"] == {"title": 1, "changed": True} and "changed" not in found["properties"]
    assert found["allOf"] == schema["allOf"] and found["default"] == {"title": 9}


def test_schemas_too_deep_to_be_read_are_left_alone():
    schema = {"type": "null"}
    for _ in range(5000):
        schema = {"items": [schema]}
    assert mapped(schema, lambda node: node)


def test_places_take_little_memory_however_long_their_pointers_are():
    name, many = "/" * 100_000, 2_000
    schema = {"properties": {name: {"required": ["x"] * many, "not": {"items": {"anyOf": [{"minItems": 1}]}}}}}
    tracemalloc.start()
    found = list(keywords(schema))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000  # of 400,000,000 that the pointers would take
    place, key, value = found[-1]
    assert str(place) == f"/properties/{'~1' * 100_000}/not/items/anyOf/0/minItems" and (key, value) == ("minItems", 1)
