"""JSON schemas to try grammars on that they were not made with: realistic ones, and random mixes of keywords.

`varied(count, seed)` is half and half as far as the realistic ones reach. What is written here keeps to what both
llguidance and the jsonschema library say of a keyword; multiples are of numbers that floats hold exactly.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]
NAMES = "id naïve größe 名前 дата user-id first_name $ref? a.b c/d e~f x:y emoji😀 with space 0 _ URL isOpen".split(" ")
LONG = [f"{kind}-{place}" for kind in ("north", "south", "east", "west") for place in range(40)]
FORMATS = ("date", "date-time", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
PATTERNS = (
    "^[A-Z]{2}[0-9]{2}( [0-9]{4}){2,5}$",
    "^(?:[01]?[0-9]|2[0-3]):[0-5][0-9]$",
    "^#[0-9a-fA-F]{6}$",
    "^v[0-9]+(\\.[0-9]+){2}$",
    "^[^@\\s]{1,12}@[a-z]{2,9}\\.(com|org|net)$",
    "foo",
    "[0-9]$",
    "^x",
    "a.*b",
    "^(north|south)-(east|west)$",
    "^\\S+$",
    "^[a-z][a-z0-9_]{2,30}$",
    "^-?[0-9]{1,3}\\.[0-9]{4,6}$",
    "^(https?)://[a-z]+(/[a-z]*)*$",
    "^[а-яё]{3,8}$",
)


def closed(properties: Schema, required: list[str] | None = None, **more: Any) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
        **more,
    }


def _integer(draw: random.Random, depth: int) -> Schema:
    low = draw.choice([-1000, -7, 0, 1, 18, 1990])
    bounds = draw.choice(
        [
            {},
            {"minimum": low},
            {"maximum": low},
            {"exclusiveMinimum": low, "exclusiveMaximum": low + 12},
            {"minimum": low, "maximum": low + draw.choice([0, 3, 500])},
            {"multipleOf": draw.choice([2, 5, 7, 100])},
        ]
    )
    return {"type": "integer", **bounds}


def _number(draw: random.Random, depth: int) -> Schema:
    return {
        "type": "number",
        **draw.choice(
            [
                {},
                {"minimum": -0.5, "maximum": 0.25},
                {"exclusiveMinimum": 0},
                {"maximum": -3},
                {"multipleOf": 0.5},
                {"minimum": 10.25, "exclusiveMaximum": 10.5},
                {"minimum": -90, "maximum": 90},
                {"multipleOf": 4, "minimum": 9},
            ]
        ),
    }


def _string(draw: random.Random, depth: int) -> Schema:
    least = draw.choice([0, 1, 5, 40])
    return {
        "type": "string",
        **draw.choice(
            [
                {},
                {"minLength": least},
                {"maxLength": least},
                {"minLength": least, "maxLength": least + draw.choice([0, 1, 30])},
                {"pattern": draw.choice(PATTERNS)},
                {"format": draw.choice(FORMATS)},
                {"pattern": draw.choice(PATTERNS)},
            ]
        ),
    }


def _constant(draw: random.Random, depth: int) -> Schema:
    value = draw.choice(
        ["x", "a \"quoted\" \\ 'text'", "日本語", 0, -1.5, True, None, [1, "two", {}], {"k": [None]}, "\t"]
    )
    return {"const": value}


def _choice(draw: random.Random, depth: int) -> Schema:
    some: list[Any] = ["left", "right", "röt", 1, 2, 10, 100, 1.25, None, False, ["a"], {"a": 1}, "", " ", "🙂🙃"]
    return {"enum": draw.sample(LONG, 90) if draw.random() < 0.2 else draw.sample(some, draw.randint(1, 9))}


def _array(draw: random.Random, depth: int) -> Schema:
    least = draw.choice([0, 0, 1, 2, 4])
    more = draw.choice([{}, {"maxItems": least + draw.randint(0, 3)}])
    return {"type": "array", "items": value(draw, depth + 1), "minItems": least, **more}


def _tuple(draw: random.Random, depth: int) -> Schema:
    first = [value(draw, depth + 1) for _ in range(draw.randint(1, 3))]
    rest = draw.choice([False, {"type": "boolean"}])
    return {"type": "array", "prefixItems": first, "items": rest, "minItems": draw.randint(0, len(first))}


def _object(draw: random.Random, depth: int) -> Schema:
    names = draw.sample(NAMES, draw.randint(0 if depth else 1, max(2, 6 - 2 * depth)))
    found = closed({name: value(draw, depth + 1) for name in names}, [name for name in names if draw.random() < 0.5])
    if draw.random() < 0.3:
        found["additionalProperties"] = value(draw, depth + 2)
    return found


def _map(draw: random.Random, depth: int) -> Schema:
    inner = value(draw, depth + 1)
    return draw.choice(
        [
            {"type": "object", "additionalProperties": inner, "minProperties": 1},
            {"type": "object", "patternProperties": {"^[a-z]{1,8}$": inner}, "additionalProperties": False},
            {"type": "object", "additionalProperties": inner, "maxProperties": 2},
        ]
    )


def _either(draw: random.Random, depth: int) -> Schema:
    return {"anyOf": [value(draw, depth + 1) for _ in range(draw.randint(2, 4))]}


def _one(draw: random.Random, depth: int) -> Schema:
    kinds = draw.sample(["kitten", "puppy", "chick"], draw.randint(2, 3))
    return {"oneOf": [closed({"kind": {"const": kind}, "of": value(draw, depth + 2)}) for kind in kinds]}


def _both(draw: random.Random, depth: int) -> Schema:
    first = {"type": "object", "properties": {"a": value(draw, depth + 2)}, "required": ["a"]}
    return {"allOf": [first, {"properties": {"b": value(draw, depth + 2)}, "required": ["b"]}]}


def _typed(draw: random.Random, depth: int) -> Schema:
    return {"type": draw.sample(["string", "integer", "boolean", "null", "number"], draw.randint(1, 4))}


def _tree(draw: random.Random, depth: int) -> Schema:
    return {"$ref": "#/$defs/tree"}


LEAVES: list[Callable[[random.Random, int], Schema]] = [_integer, _number, _string, _string, _constant, _choice, _typed]
BRANCHES = [_array, _tuple, _object, _object, _map, _either, _one, _both, _tree]


def value(draw: random.Random, depth: int) -> Schema:
    """A random schema of a value, `depth` levels within others."""
    return draw.choice(LEAVES if depth > 3 or draw.random() < 0.2 * depth else BRANCHES + LEAVES)(draw, depth)


def whole(draw: random.Random) -> Schema:
    """A random schema of an answer, with what its references mean."""
    branches = {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}
    tree = closed({"label": {"type": "string", "maxLength": 9}, "branches": branches}, ["label"])
    return {"$defs": {"tree": tree}, **draw.choice([_object, _object, _array, _map, _one, _both])(draw, 0)}


def varied(count: int, seed: int = 1) -> list[Schema]:
    draw = random.Random(seed)
    return [*REALISTIC, *(whole(draw) for _ in range(count))][: max(count, len(REALISTIC))]


_POINT = closed(
    {
        "lat": {"type": "number", "minimum": -90, "maximum": 90},
        "lon": {"type": "number", "minimum": -180, "maximum": 180},
    }
)
_MONEY = closed(
    {
        "amount": {"type": "string", "pattern": "^-?[0-9]+\\.[0-9]{2}$"},
        "currency": {"enum": ["EUR", "USD", "JPY", "CHF"]},
    }
)
_ADDRESS = closed(
    {
        "street": {"type": "string", "minLength": 1},
        "zip": {"type": "string", "pattern": "^[0-9]{5}(-[0-9]{4})?$"},
        "city": {"type": "string", "maxLength": 40},
        "country": {"type": "string", "minLength": 2, "maxLength": 2},
    },
    ["street", "city", "country"],
)
_FILTER = {
    "$defs": {
        "filter": {
            "anyOf": [
                closed(
                    {
                        "field": {"type": "string"},
                        "op": {"enum": ["=", "<", ">", "in"]},
                        "value": {"type": ["string", "number", "null"]},
                    }
                ),
                closed({"and": {"type": "array", "items": {"$ref": "#/$defs/filter"}, "minItems": 1}}),
                closed({"not": {"$ref": "#/$defs/filter"}}),
            ]
        }
    },
    "$ref": "#/$defs/filter",
}
REALISTIC: list[Schema] = [
    closed(
        {
            "city": {"type": "string"},
            "unit": {"enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
        },
        ["city"],
    ),
    closed(
        {
            "name": {"type": "string"},
            "home": _ADDRESS,
            "work": {"anyOf": [_ADDRESS, {"type": "null"}]},
            "born": {"type": "string", "format": "date"},
        }
    ),
    closed(
        {
            "invoice": {"type": "string", "pattern": "^INV-[0-9]{4}-[0-9]{6}$"},
            "issued": {"type": "string", "format": "date-time"},
            "lines": {
                "type": "array",
                "minItems": 1,
                "maxItems": 20,
                "items": closed(
                    {"text": {"type": "string"}, "count": {"type": "integer", "minimum": 1}, "price": _MONEY}
                ),
            },
            "total": _MONEY,
        }
    ),
    closed(
        {
            "id": {"type": "string", "format": "uuid"},
            "host": {"type": "string", "format": "ipv4"},
            "port": {"type": "integer", "minimum": 1, "maximum": 65535},
            "contact": {"type": "string", "format": "email"},
            "url": {"type": "string", "format": "uri"},
        }
    ),
    closed(
        {
            "type": {"const": "FeatureCollection"},
            "features": {
                "type": "array",
                "minItems": 1,
                "items": closed(
                    {
                        "type": {"const": "Feature"},
                        "geometry": {
                            "anyOf": [
                                closed(
                                    {
                                        "type": {"const": "Point"},
                                        "coordinates": {
                                            "type": "array",
                                            "items": {"type": "number"},
                                            "minItems": 2,
                                            "maxItems": 2,
                                        },
                                    }
                                ),
                                closed(
                                    {
                                        "type": {"const": "LineString"},
                                        "coordinates": {
                                            "type": "array",
                                            "minItems": 2,
                                            "items": {
                                                "type": "array",
                                                "prefixItems": [{"type": "number"}, {"type": "number"}],
                                                "items": False,
                                                "minItems": 2,
                                            },
                                        },
                                    }
                                ),
                            ]
                        },
                        "properties": {
                            "type": "object",
                            "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
                        },
                    }
                ),
            },
        }
    ),
    _FILTER,
    {
        "$defs": {
            "node": closed(
                {"op": {"enum": ["+", "-", "*"]}, "left": {"$ref": "#/$defs/side"}, "right": {"$ref": "#/$defs/side"}}
            ),
            "side": {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/node"}]},
        },
        "$ref": "#/$defs/node",
    },
    closed(
        {
            "thoughts": {"type": "array", "items": {"type": "string", "minLength": 10}, "minItems": 2, "maxItems": 6},
            "answer": {"enum": ["A", "B", "C", "D"]},
            "confidence": {"type": "number", "minimum": 0, "maximum": 1},
        }
    ),
    closed(
        {
            "entities": {
                "type": "array",
                "items": {
                    "oneOf": [
                        closed(
                            {
                                "kind": {"const": "person"},
                                "name": {"type": "string"},
                                "age": {"type": "integer", "minimum": 0},
                            },
                            ["kind", "name"],
                        ),
                        closed({"kind": {"const": "place"}, "name": {"type": "string"}, "at": _POINT}),
                        closed({"kind": {"const": "date"}, "on": {"type": "string", "format": "date"}}),
                    ]
                },
            }
        }
    ),
    {"type": "array", "items": {"type": "string", "format": "time"}, "minItems": 3, "maxItems": 3},
    {
        "type": "object",
        "patternProperties": {"^[a-z]{2}(-[A-Z]{2})?$": {"type": "string"}},
        "additionalProperties": False,
        "minProperties": 1,
    },
    closed(
        {
            "問い": {"type": "string"},
            "答え": {"enum": ["はい", "いいえ", "分からない"]},
            "確率": {"type": "number", "minimum": 0, "maximum": 1},
        }
    ),
    closed(
        {
            "airport": {"enum": LONG},
            "gate": {"type": "string", "pattern": "^[A-Z][0-9]{1,2}$"},
            "delayed": {"type": "boolean"},
        }
    ),
    closed(
        {
            "moves": {
                "type": "array",
                "items": {"type": "string", "pattern": "^[a-h][1-8][a-h][1-8][qrbn]?$"},
                "minItems": 1,
                "maxItems": 5,
            }
        }
    ),
    {
        "type": "object",
        "properties": {f"field_{i}": {"type": ["string", "integer", "null"]} for i in range(25)},
        "required": ["field_24", "field_3"],
        "additionalProperties": False,
    },
    closed(
        {
            "a": {"allOf": [{"type": "integer", "minimum": 5}, {"maximum": 9}]},
            "b": {"type": "string", "allOf": [{"minLength": 3}, {"maxLength": 5}]},
        }
    ),
    {"type": "string", "minLength": 200},
    {"type": "integer"},
    {"type": "boolean"},
    {"type": "null"},
    {"const": {"only": ["this"]}},
    {"anyOf": [{"type": "string", "format": "ipv6"}, {"type": "string", "format": "hostname"}]},
]
