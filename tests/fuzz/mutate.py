"""Seeded mutators of bytes, of JSON-like values and of JSON text: what a hostile model file may hold.

Each takes a `random.Random` and returns a changed copy, so that (seed, number) names a mutation for ever. They know
shapes of data, nothing of any file format or of the code they attack.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

EDGES = (0, 1, 2, 3, 7, 31, 32, 33, 127, 128, 255, 256, 4095, 65535, 65536, 1 << 24, (1 << 24) + 1, 1 << 30)
EDGES += tuple((1 << bits) + by for bits in (31, 32, 62, 63, 64) for by in (-1, 0, 1))
_NUMBERS = (*EDGES, -1, -2, -(1 << 31), -(1 << 63), 10**30, 10**400, 0.0, -0.0, 0.5, 1e-320, 1e38, 1e300)
_FLOATS = (math.nan, math.inf, -math.inf)
_TEXTS = ("", " ", "\0", "a", "none", "true", "1", "-1", "é", "\u2028", "\U0001f600", "\ufeff", "%s", "{}", "../x")
_TEXTS += ("a" * 300, "é" * 5000, "__class__", "{{ 1 }}", "\x7f\x1b[0m")
ODD: tuple[Any, ...] = (*_NUMBERS, *_FLOATS, *_TEXTS, None, True, False, [], {}, [[]], {"": None}, [None] * 300)


def edge_bytes(rng: Random, width: int, value: int) -> bytes:
    """A little-endian integer of `width` bytes: an edge case, or near `value`."""
    pick = rng.random()
    if pick < 0.5:
        number = rng.choice(EDGES)
    elif pick < 0.8:
        number = value + rng.choice((-33, -32, -8, -2, -1, 1, 2, 7, 8, 31, 32, 1 << 16))
    else:
        number = value * rng.choice((2, 3, -1, 1 << 8, 1 << 32)) ^ (1 << rng.randrange(8 * width))
    return (number & ((1 << (8 * width)) - 1)).to_bytes(width, "little")


def blob(rng: Random, data: bytes, other: bytes) -> bytes:
    """Bytes after one blind change; splices take their end from `other`."""
    at = rng.randrange(len(data)) if data else 0
    match rng.randrange(8):
        case 0 | 1:
            flipped = (data[at] if data else 0) ^ (1 << rng.randrange(8))
            return data[:at] + bytes([flipped]) + data[at + 1 :]
        case 2:
            width = rng.choice((1, 2, 4, 8))
            old = int.from_bytes(data[at : at + width], "little")
            return data[:at] + edge_bytes(rng, width, old) + data[at + width :]
        case 3:
            return data[:at]
        case 4:
            return data[:at] + data[at + rng.randrange(1, 40) :]
        case 5:
            return data[:at] + rng.randbytes(rng.randrange(1, 40)) + data[at:]
        case 6:
            end = at + rng.randrange(1, 200)
            return data[:end] + data[at:end] * rng.randrange(1, 4) + data[end:]
        case _:
            return data[:at] + other[rng.randrange(len(other) + 1) :]


def value(rng: Random, x: Any, keys: Sequence[str] = (), depth: int = 0) -> Any:
    """A copy of a JSON-like value with one place changed. `keys`: names worth adding to objects."""
    if isinstance(x, dict) and x and (depth == 0 or rng.random() < 0.7):
        if rng.random() < 0.3:
            return _object(rng, x, keys)
        key = rng.choice(list(x))
        return {**x, key: value(rng, x[key], keys, depth + 1)}
    if isinstance(x, list) and x and rng.random() < 0.7:
        if rng.random() < 0.4:
            return _list(rng, x)
        at = rng.randrange(len(x))
        return [*x[:at], value(rng, x[at], keys, depth + 1), *x[at + 1 :]]
    return _leaf(rng, x)


def _object(rng: Random, x: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    key, odd = rng.choice(list(x)), rng.choice(ODD)
    match rng.randrange(5):
        case 0:
            return {k: v for k, v in x.items() if k != key}
        case 1:
            return {**x, rng.choice(keys or _TEXTS): odd}
        case 2:
            return {**x, rng.choice(keys or _TEXTS): rng.choice(list(x.values()))}
        case 3:
            return {(rng.choice(_TEXTS) if k == key else k): v for k, v in x.items()}
        case _:
            return {**x, key: odd}


def _list(rng: Random, x: list[Any]) -> list[Any]:
    at = rng.randrange(len(x))
    match rng.randrange(6):
        case 0:
            return x[:at] + x[at + 1 :]
        case 1:
            return [*x[:at], x[at], *x[at:]]
        case 2:
            return x[::-1]
        case 3:
            return x[:at]
        case 4:
            return x * rng.randrange(2, 6)
        case _:
            return [*x, rng.choice(ODD)]


def _leaf(rng: Random, x: Any) -> Any:
    if isinstance(x, bool) or rng.random() < 0.4:
        return rng.choice(ODD)
    if isinstance(x, int):
        fraction = x + 0.5 if abs(x) < 1 << 64 else 0.5
        return rng.choice((x + 1, x - 1, 2 * x, 3 * x, -x, x * 1000, x << 20, fraction, str(x), [x], {"a": x}))
    if isinstance(x, float):
        return rng.choice((2 * x, -x, x / 1e9, x * 1e9, int(x) if math.isfinite(x) else 0, str(x), [x]))
    if isinstance(x, str):
        return text(rng, x)
    return nested(rng, x)


def text(rng: Random, x: str) -> str:
    """A string after one change."""
    at = rng.randrange(len(x) + 1)
    match rng.randrange(6):
        case 0:
            return x[:at] + rng.choice(_TEXTS) + x[at:]
        case 1:
            return x[:at]
        case 2:
            return x[:at] + x[at + 1 :]
        case 3:
            return x * rng.choice((2, 3, 50))
        case 4:
            return x[:at] + chr(rng.choice((0, 9, 32, 127, 0xE9, 0x120, 0x2581, 0xFFFD, 0x1F600))) + x[at + 1 :]
        case _:
            return rng.choice(_TEXTS)


def nested(rng: Random, x: Any) -> Any:
    """`x` inside up to 200 lists or objects."""
    as_list = rng.random() < 0.5
    for _ in range(rng.choice((1, 2, 10, 200))):
        x = [x] if as_list else {"a": x}
    return x


def json_text(rng: Random, data: bytes) -> bytes:
    """The bytes of a JSON document after one change to the text: things a parsed value cannot say."""
    places = [i for i, byte in enumerate(data) if byte in b":,[{"] if len(data) < 4000 else []
    at = 1 + (rng.choice(places) if places else rng.randrange(len(data) + 1))
    rest = data[at:]
    match rng.randrange(8):
        case 0:  # the rest of an object once more: repeated keys
            return data[:at] + rest.rstrip()[:-1] + b"," + rest
        case 1:
            deep = rng.choice((50, 900, 5000, 100_000))
            return data[:at] + rng.choice((b"[" * deep, b"[" * deep + b"]" * deep, b'{"a":' * deep)) + rest
        case 2:
            odd = (b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"9" * 5000, b"-0", b"1E400", b"0x1", b"01", b"1.")
            return data[:at] + rng.choice(odd) + rng.choice((b"", b",")) + rest
        case 3:
            odd = (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xef\xbb\xbf", b"\0", b"\\ud800")
            return data[:at] + rng.choice(odd) + rest
        case 4:
            return data.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-32", "utf-16-le", "utf-7")))
        case 5:
            return data + rng.choice((b" " * 5000, b"{}", b"\0", b"]", b"//"))
        case _:
            return blob(rng, data, data)


def document(rng: Random, x: Any, keys: Sequence[str] = ()) -> bytes:
    """A JSON document of `x` after one to three changes of its value or text."""
    rounds = rng.choice((1, 1, 2, 3))
    in_text = rng.random() < 0.35
    for _ in range(rounds - in_text):
        x = value(rng, x, keys)
    data = dump(x)
    return json_text(rng, data) if in_text else data


def dump(x: Any) -> bytes:
    """JSON as Python writes it: NaN, Infinity and any integer included."""
    try:
        return json.dumps(x).encode()
    except (TypeError, RecursionError, ValueError):  # an integer too long to print, keys that are no strings
        return b'{"a":' * 3


def chain(rng: Random, x: Any, change: Callable[[Random, Any], Any], limit: int = 3) -> Any:
    """`change` applied one to `limit` times."""
    for _ in range(rng.randrange(1, limit + 1)):
        x = change(rng, x)
    return x
