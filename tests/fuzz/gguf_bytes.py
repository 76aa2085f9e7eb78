"""Writes GGUF headers by hand, remembering where every count, length, type, dimension and offset went.

Knows the file format and nothing of our reader: the `fields` are what a mutator aims at.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
ALIGNMENT = 32


@dataclass(frozen=True)
class Key:
    """One metadata entry; an array's value is (element type, entries)."""

    name: str
    type: int
    value: Any


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]  # row-major
    type: int
    nbytes: int
    data: bytes = b""  # what is not zero, from the start


@dataclass
class Header:
    """Bytes so far and the (offset, width) of each field worth attacking; `starts` cut it into records."""

    out: bytearray = field(default_factory=bytearray)
    fields: list[tuple[int, int]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)

    def number(self, code: str, value: Any) -> None:
        self.fields.append((len(self.out), struct.calcsize("<" + code)))
        self.out += struct.pack("<" + code, value)

    def string(self, text: str) -> None:
        data = text.encode()
        self.number("Q", len(data))
        self.out += data

    def key(self, key: Key) -> None:
        self.starts.append(len(self.out))
        self.string(key.name)
        self.number("I", key.type)
        self._value(key.type, key.value)

    def tensor(self, tensor: Tensor, offset: int) -> None:
        self.starts.append(len(self.out))
        self.string(tensor.name)
        self.number("I", len(tensor.shape))
        for dim in tensor.shape[::-1]:
            self.number("Q", dim)
        self.number("I", tensor.type)
        self.number("Q", offset)

    def _value(self, kind: int, value: Any) -> None:
        if kind == STRING:
            self.string(value)
        elif kind == ARRAY:
            element, entries = value
            self.number("I", element)
            self.number("Q", len(entries))
            for entry in entries:
                self._value(element, entry)
        else:
            self.number(SCALARS[kind], value)


def keys_of(metadata: Mapping[str, Any]) -> list[Key]:
    """Python metadata as entries of the types that files use."""
    return [_key(name, value) for name, value in metadata.items()]


def _key(name: str, value: Any) -> Key:
    if isinstance(value, list | np.ndarray):
        entries = list(value) if isinstance(value, list) else value.tolist()
        element = _type(entries[0]) if entries else 4
        return Key(name, ARRAY, (element, entries))
    return Key(name, _type(value), value)


def _type(value: Any) -> int:
    if isinstance(value, str):
        return STRING
    if isinstance(value, bool):
        return 7
    return 6 if isinstance(value, float) else 4 if value >= 0 else 5


def write(keys: list[Key], tensors: list[Tensor], claim: tuple[int, int] = (0, 0)) -> tuple[Header, bytes, int]:
    """(header, first bytes of the data, bytes of the whole file). `claim`: added to the two counts."""
    header = Header()
    header.out += b"GGUF"
    header.number("I", 3)
    header.number("Q", len(tensors) + claim[0])
    header.number("Q", len(keys) + claim[1])
    for key in keys:
        header.key(key)
    data, at = bytearray(), 0
    for tensor in tensors:
        header.tensor(tensor, at)
        if tensor.data:
            data += b"\0" * (at - len(data)) + tensor.data
        at += tensor.nbytes + -tensor.nbytes % ALIGNMENT
    header.out += b"\0" * (-len(header.out) % ALIGNMENT)
    return header, bytes(data), len(header.out) + at
