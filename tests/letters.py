"""A vocabulary for grammars: all bytes, some words of JSON, and end tokens; and schemas whose answers it can spell."""

from __future__ import annotations

import json

from ridgeline.engine.params import Grammar

END, OTHER_END, SPECIAL, FIRST = 2, 3, 4, 10
WORDS = [b'{"', b'":', b'":"', b'","', b'",', b'"}', b'"]', b"}]", b'"]}', b"true", b"false", b"null", b"name", b"age"]
WORDS += [b"the", b" of", b"ab", b"abc", b"00", b"2024", b"-01", b"    ", b"\\n", b"\xc3\xa9"]


class Letters:
    """A tokenizer of the longest words that fit."""

    vocab_size = FIRST + 256 + len(WORDS)
    bos_id = None
    eos_ids = frozenset((END, OTHER_END))
    eos_token = "<end>"

    def __init__(self) -> None:
        self._words = {END: b"<end>", OTHER_END: b"<stop>", SPECIAL: b"<special>"}
        self._words |= {FIRST + i: bytes([i]) for i in range(256)}
        self._words |= {FIRST + 256 + i: word for i, word in enumerate(WORDS)}
        self._ids = {word: i for i, word in self._words.items() if i >= FIRST}

    def token_bytes(self, token_id: int) -> bytes:
        return self._words.get(token_id, b"")

    def is_special(self, token_id: int) -> bool:
        return token_id in (END, OTHER_END, SPECIAL)

    def encode(self, text: str, add_special: bool, parse_special: bool = True) -> list[int]:
        ids, data, at = [], text.encode(), 0
        while at < len(data):
            word = next(data[at : at + n] for n in range(8, 0, -1) if data[at : at + n] in self._ids)
            ids.append(self._ids[word])
            at += len(word)
        return ids

    def decode(self, ids: list[int]) -> str:
        return b"".join(self.token_bytes(i) for i in ids if i >= FIRST).decode()


def closed(properties: dict, required: list[str] | None = None) -> dict:
    """An object of these properties and no others."""
    required = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def of_schema(schema: dict) -> Grammar:
    return Grammar("json_schema", json.dumps(schema))


PERSON = closed({"name": {"type": "string"}, "age": {"type": "integer"}, "alive": {"type": "boolean"}}, ["name", "age"])
TREE = {
    "$defs": {"node": closed({"v": {"enum": [1, 2]}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}})},
    "$ref": "#/$defs/node",
}
SCHEMAS = [
    PERSON,
    TREE,
    closed({"tags": {"type": "array", "items": {"enum": ["a", "long one"]}, "minItems": 2}}),
    closed({"day": {"type": "string", "format": "date"}, "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}}),
    closed({"text": {"type": "string", "minLength": 9, "maxLength": 40}}),
    {"type": "array", "items": closed({"x": {"type": "number"}}), "maxItems": 4},
    {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "integer"}},
    {"type": ["integer", "null", "string"]},
]
