"""JSON schemas as data: pointers of what llguidance refuses, and schemas within schemas."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from letters import Letters
from ridgeline.errors import InvalidRequest
from ridgeline.guidance.compiler import Compiler
from ridgeline.guidance.grammar import Grammar, translate
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
        ({"type": "number", "maximum": 1e308}, "maximum"),
        ({"type": "number", "minimum": 0, "exclusiveMaximum": 1e20}, "exclusiveMaximum"),
        ({"type": "integer", "maximum": 1, "minimum": -1e30}, "minimum"),
        ({"type": "integer", "exclusiveMinimum": 9223372036854775807}, "exclusiveMinimum"),
        ({"type": "number", "minimum": 1e-300}, "minimum"),
        ({"type": "number", "maximum": -1e-100}, "maximum"),
        ({"type": "integer", "multipleOf": 0}, "multipleOf"),
        ({"type": "number", "multipleOf": 1e-20}, "multipleOf"),
        ({"type": "number", "multipleOf": 123456789.123456}, "multipleOf"),
        ({"type": "number", "multipleOf": 1e30}, "multipleOf"),
        ({"type": "string", "minLength": 10**12}, "minLength"),
        ({"type": "string", "minLength": 1, "maxLength": 10**12}, "maxLength"),
        ({"type": "string", "minLength": "x  y"}, "minLength"),
        ({"allOf": 7}, "allOf"),
        ({"enum": {}}, "enum"),
        ({"prefixItems": {"a": {}}}, "prefixItems"),
        ({"properties": 7}, "properties"),
        ({"type": 7}, "type"),
        ({"type": ["string", 7]}, "type"),
        ({"type": "a b"}, "type"),
        ({"type": ""}, "type"),
        ({"type": ["string", "strin"]}, "type"),
        ({"type": "string", "format": "a b"}, "format"),
        ({"type": "string", "format": "a\n b"}, "format"),
        ({"type": "string", "format": ""}, "format"),
        ({"type": "string", "format": "ab " * 300}, "format"),
        ({"type": "object", "required": ["a", 3]}, "required"),
        ({"items": 7}, "items"),
        ({"type": "object", "properties": {"x": {}, "y": None}}, "properties/y"),
        ({"anyOf": [{}, "x"]}, "anyOf/1"),
        ({"$id": "x y"}, "$id"),
        ({"$schema": "https://example.org/s"}, "$schema"),
        ({"const": 10**30}, "const"),
        ({"default": {"a": [1, {"b": -(2**63) - 1}]}}, "default"),
        ({"type": "number", "maximum": 2**64}, "maximum"),
    ],
    ids=str,
)
def test_what_cannot_be_followed_is_named_by_its_pointer(inner, place):
    others = (
        {"type": "string", "pattern": "(a)b", "minLength": 0, "maxLength": 9}, {"$ref": "#/$defs/here"}, {"const": 5},
        {"patternProperties": {"^y": {}}}, {"type": "integer", "minimum": 0, "maximum": 1, "multipleOf": 1},
        {"type": "string", "format": "date"}, {"allOf": [True]}, {"type": ["null", "boolean"]}, {"required": ["a"]},
    )  # fmt: skip
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


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"$ref": "#/default", "default": {"type": "object", "minProperties": 3}}, "/default/minProperties"),
        ({"$ref": "#/x-a/1/y", "x-a": [0, {"y": {"allOf": [{"minProperties": 2}]}}]}, "/x-a/1/y/allOf/0/minProperties"),
        ({"$ref": "#/%64efault/a~1b", "default": {"a/b": {"minProperties": 3}}}, "/default/a~1b/minProperties"),
        ({"$ref": "#/x", "x": {"$ref": "#/y"}, "y": {"items": {"minProperties": 3}}}, "/y/items/minProperties"),
        ({"$ref": "#/x", "x": {"$ref": "#/x/y", "y": {"$ref": "#/x", "minProperties": 3}}}, "/x/y/minProperties"),
        ({"$ref": "#/x", "x": {"type": "string", "format": "zz"}}, "/x/format"),
        ({"$defs": {"a": {"$id": "q.json", "$ref": "#/x", "x": {"minProperties": 3}}}}, "/$defs/a/x/minProperties"),
        ({"$ref": "http://e/q#/x", "items": {"$id": "http://e/q", "x": {"minItems": -1}}}, "/items/x/minItems"),
        ({"$id": "http://e.org/q", "$ref": "q#/x", "x": {"minProperties": 3}}, "/x/minProperties"),
        ({"$ref": "#/x", "x": {"x-guidance": {}}}, "/x/x-guidance"),
    ],
    ids=str,
)  # fmt: skip
def test_what_references_point_to_is_looked_at_wherever_it_is(schema, place):
    with pytest.raises(InvalidRequest) as refused:
        COMPILER.check(Grammar("json_schema", json.dumps(schema)), 100)
    assert f" at {place}: not supported" in str(refused.value)


@pytest.mark.parametrize("inner", [{"minProperties": 3}, {"x-guidance": {}}, [{"minProperties": 3}], {"$ref": "#/no"}])
def test_what_is_no_schema_is_not_looked_at(inner):
    """Also in a document with references, to places that are schemas already."""
    schema = {"type": "null", "x-meta": inner, "default": inner, "examples": [inner]}
    assert COMPILER.check(Grammar("json_schema", json.dumps(schema)), 100) == []
    schema = {"type": "array", "items": {"$ref": "#"}, "x-meta": inner, "properties": {"x": {"$ref": "#/properties/x"}}}
    assert COMPILER.check(Grammar("json_schema", json.dumps(schema)), 100) == []


def test_each_place_is_there_once_where_references_go_round():
    schema = {"$ref": "#/x/y", "x": {"y": {"$ref": "#/x", "type": "null"}}, "$defs": {"z": {"$ref": "#/$defs/z"}}}
    found = [(str(place), value) for place, _, value in keywords(schema) if place and not isinstance(value, dict)]
    assert found == [
        ("/$ref", "#/x/y"), ("/$defs/z/$ref", "#/$defs/z"), ("/x/y/$ref", "#/x"), ("/x/y/type", "null"),
    ]  # fmt: skip


def test_data_are_changed_where_they_are_schemas_that_are_referred_to():
    """But not values that an answer must be."""
    date = {"format": "date"}
    schema = {
        "default": {"a": dict(date), "b": [dict(date)]}, "anyOf": [{"$ref": "#/default/b/0"}, {"$ref": "#/const"}],
        "const": dict(date), "enum": [dict(date)], "x-meta": dict(date),
    }  # fmt: skip
    found = mapped(schema, lambda node: {key: value for key, value in node.items() if key != "format"})
    assert found == {**schema, "default": {"a": date, "b": [{}]}}


def test_counts_may_be_written_as_numbers_without_a_fraction():
    def of(**counts: float) -> Grammar:
        return Grammar("json_schema", json.dumps({"items": [{"anyOf": [counts]}], "const": {"a": {"maxLength": 2.0}}}))

    for counts in (
        {"minProperties": 1.0},
        {"minProperties": 0.0},
        {"minLength": 2.0, "maxLength": 3.0},
        {"maxItems": 9.0},
    ):
        assert COMPILER.check(of(**counts), 100) == []
    for least in (2, 2.0, 3.0, 1.5):
        with pytest.raises(InvalidRequest, match="at /items/0/anyOf/0/minProperties: not supported above 1"):
            COMPILER.check(of(minProperties=least), 100)
    for counts, said in (
        ({"minLength": 1.5}, "minLength"),
        ({"maxItems": -1.0}, "maxItems"),
        ({"minItems": 1e30}, "minItems"),
    ):
        with pytest.raises(InvalidRequest, match=f"at /items/0/anyOf/0/{said}: not supported"):
            COMPILER.check(Grammar("json_schema", json.dumps({"type": "array", "items": [{"anyOf": [counts]}]})), 100)
    assert '{"maxLength":2.0}' in translate(of(minLength=2.0)) and '"minLength":2}' in translate(of(minLength=2.0))


def test_long_pointers_are_told_by_their_begin_and_end():
    name = "a" * 130_000
    for inner, place in (({"minProperties": 3}, "minProperties"), ({"type": "strin"}, "type")):
        with pytest.raises(InvalidRequest) as refused:
            COMPILER.check(Grammar("json_schema", json.dumps({"properties": {name: inner}})), 100)
        begin, end = f"/properties/{'a' * 88}", f"/{place}"
        assert f" at {begin}...{'a' * (100 - len(end))}{end}: not supported" in str(refused.value)
        assert len(str(refused.value)) < 400


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
