"""Grammar: what an answer must match, as clients ask for it, and the same in llguidance's words.

Owns the kinds of grammars, their bounds, and what an error of llguidance means to who sent one. Must not know
tokenizers or engines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import msgspec

from ridgeline.errors import InvalidRequest
from ridgeline.guidance.formats import spelled
from ridgeline.guidance.patterns import example
from ridgeline.guidance.refusals import unsupported
from ridgeline.guidance.schemas import keywords, mapped

KINDS = ("json_schema", "json_object", "regex", "choice", "lark")
MAX_BYTES = 256 << 10  # of a grammar's text: deeper chains of its rules than that allows would overflow stacks
MAX_CHOICES = 4096
_PARTS = 16  # patterns of a schema that examples are made of
_BEHINDS = 256  # looked at in Lark
_PATTERNS = 128  # of names in one place: each is compared with each, 0.2 s in all, of 300 some 7
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_JSON = {  # \u would spell names that are taken, and two of them one character
    "whitespace_flexible": False, "json_allowed_escapes": 'nrbtf\\"',
}  # fmt: skip
_BEHIND = re.compile(r'(?:/|[A-Z]) (?:("(?:[^"\\\n]|\\.)*")|<\[(\d{1,9})\]>)')
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$#&\-~]")  # what means something in a pattern


class Grammar(msgspec.Struct, frozen=True):
    """What an answer must match. `value` is a JSON schema's text, a pattern (for the whole answer), a JSON list of
    strings of which it is one, or a grammar in Lark's or GBNF's notation; for json_object, "".

    An answer to any kind but lark is complete and matches, whatever max_tokens is; for lark that is a best effort. With
    `complete` one to lark is too where a shortest answer is found, for which more is looked at.
    """

    kind: str
    value: str = ""
    complete: bool = False

    @property
    def guaranteed(self) -> bool:
        return self.kind != "lark" or self.complete


def translate(grammar: Grammar) -> str:
    """llguidance's text of a grammar, without whitespace in JSON. InvalidRequest where its form is wrong."""
    from llguidance import LLMatcher

    check_form(grammar)
    text = grammar.value
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    if grammar.kind == "choice":
        return LLMatcher.grammar_from_regex("|".join(_SPECIAL.sub(r"\\\g<0>", choice) for choice in _choices(text)))
    if grammar.kind == "lark":
        return LLMatcher.grammar_from_lark(_lark(text))
    schema = {"type": "object"} if grammar.kind == "json_object" else _schema(text)
    pairs = 0
    for place, key, value in keywords(schema):  # names may repeat in an answer, and then count once
        why = ""
        if key == "minProperties" and isinstance(value, (int, float)) and value > 1:
            why = " above 1"
        pairs += len(value) ** 2 if key == "patternProperties" and isinstance(value, dict) else 0
        if pairs > _PATTERNS**2:
            why = f" above {_PATTERNS} patterns"
        if why or key == "x-guidance":  # options of llguidance's own, by which answers would be no JSON
            raise InvalidRequest(
                f"the JSON schema cannot be followed at {place.shown()}: not supported{why}", "grammar"
            )
    try:
        return LLMatcher.grammar_from_json_schema(spelled(mapped(schema, _counted)), overrides=_JSON)
    except ValueError as wrong:
        raise explain(grammar, str(wrong)) from None


def wholes(grammar: Grammar) -> list[str]:
    """Some texts that should be answers to a grammar, with the shortest among them."""
    if grammar.kind == "choice":
        return _choices(grammar.value)
    found = example(grammar.value) if grammar.kind == "regex" else None
    return [] if found is None else [found]


def parts(grammar: Grammar) -> list[str | int]:
    """Some texts, or special tokens, that parts of a grammar's answers may ask for and that are hard to find: those of
    a schema's patterns, and what stands behind other text in a grammar that is to be `complete`."""
    if grammar.kind == "lark" and grammar.complete:
        return list(dict.fromkeys(_behind(grammar.value)))
    if grammar.kind != "json_schema":
        return []
    patterns = (value for _, key, value in keywords(_schema(grammar.value)) if key == "pattern")
    found = (example(pattern) for pattern in islice(patterns, _PARTS) if isinstance(pattern, str))
    strings = [json.dumps(text, ensure_ascii=False) for text in dict.fromkeys(found) if text]
    return [part for string in strings for part in (string, string[1:])]


def _behind(lark: str) -> Iterator[str | int]:
    """What stands behind patterns and terminals, and, as names may look so, perhaps some more."""
    for found in islice(_BEHIND.finditer(lark), _BEHINDS):
        with suppress(ValueError):
            yield int(found[2]) if found[2] else json.loads(found[1])


def check_form(grammar: Grammar) -> None:
    """InvalidRequest for a kind that is not known, or a text over its bound."""
    if grammar.kind not in KINDS:
        raise InvalidRequest(f"grammar kind {grammar.kind!r} is not known; choose one of {', '.join(KINDS)}", "grammar")
    if (size := len(grammar.value.encode("utf-8", "replace"))) > MAX_BYTES:
        raise InvalidRequest(f"the grammar has {size} bytes; at most {MAX_BYTES} are allowed", "grammar")


def explain(grammar: Grammar, error: str) -> InvalidRequest:
    """What llguidance says of a grammar, with the places of keywords that it does not know."""
    said = " ".join(error.split())[:500]
    if grammar.kind != "json_schema":
        return InvalidRequest(f"the {grammar.kind} grammar cannot be followed: {said}", "grammar")
    if places := unsupported(_schema(grammar.value), said):
        return InvalidRequest(f"the JSON schema cannot be followed at {places}: not supported ({said})", "grammar")
    return InvalidRequest(f"the JSON schema cannot be followed: {said}", "grammar")


def _schema(text: str) -> dict[str, Any]:
    schema = _json(text, "JSON schema")
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise InvalidRequest("the JSON schema must be an object", "grammar")
    return schema


def _counted(node: dict[str, Any]) -> dict[str, Any]:
    """A schema whose counts are written as integers, as llguidance has them: 2.0 is one to JSON Schema."""

    def whole(value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value

    return {key: whole(value) if key in _COUNTS else value for key, value in node.items()}


def _choices(text: str) -> list[str]:
    choices = _json(text, "list of choices")
    if not isinstance(choices, list) or not all(isinstance(c, str) and c for c in choices):
        raise InvalidRequest("choices must be a list of strings that are not empty", "grammar")
    if not 1 <= len(choices) <= MAX_CHOICES:
        raise InvalidRequest(f"there are {len(choices)} choices; give 1 to {MAX_CHOICES}", "grammar")
    return choices


def _json(text: str, what: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as wrong:
        raise InvalidRequest(f"the {what} is not valid JSON: {wrong}", "grammar") from None


def _lark(text: str) -> str:
    """A grammar in Lark's notation; one in GBNF's is turned into it."""
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return any_to_lark(text)
    except Exception as wrong:  # its own kinds are not public
        raise InvalidRequest(f"the grammar cannot be read: {wrong}"[:500], "grammar") from None
