"""JSON read one character at a time, strictly, while a model still writes it.

A reading is a generator that is sent characters. It raises Malformed at the first one that no JSON could have there;
so whatever it has put out is the beginning of a JSON text. Control characters that models leave raw within strings
are put out escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, str, T]
Put = Callable[[str], None]

BLANKS = " \t\r\n"
_DEPTH = 64
_SCALAR = 64  # characters of a number, or of true, false and null
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_HEX = frozenset("0123456789abcdefABCDEF")


class Malformed(Exception):
    """What was read is not the beginning of what it should be."""


def skip_blanks(first: str = "") -> Reading[str]:
    """The first character that is no blank, `first` or one behind it."""
    char = first or (yield)
    while char in BLANKS:
        char = yield
    return char


def expect(wanted: str, char: str) -> None:
    if char != wanted:
        raise Malformed


def is_scalar(text: str) -> bool:
    """Whether this is JSON's spelling of a number, a truth value or null."""
    return text in ("true", "false", "null") or _NUMBER.fullmatch(text) is not None


def read_value(first: str, put: Put, depth: int = 0) -> Reading[str]:
    """A value that begins with `first`. Gives the character behind it, or "" where the value itself shows its end."""
    if first == '"':
        put(first)
        yield from read_string(put)
        return ""
    if first in "[{":
        yield from _read_container(first, put, depth)
        return ""
    text, char = first, (yield)
    while char not in ",]}" and char not in BLANKS:
        text += char
        if len(text) > _SCALAR:
            raise Malformed
        char = yield
    if not is_scalar(text):
        raise Malformed
    put(text)
    return char


def _read_container(first: str, put: Put, depth: int) -> Reading[None]:
    if depth == _DEPTH:
        raise Malformed
    put(first)
    close = "]" if first == "[" else "}"
    char = yield from _skip(put)
    while char != close:
        if close == "}":
            expect('"', char)
            put(char)
            yield from read_string(put)
            expect(":", (yield from _skip(put)))
            put(":")
            char = yield from _skip(put)
        char = yield from read_value(char, put, depth + 1)
        if not char or char in BLANKS:
            char = yield from _skip(put, char)
        if char != close:
            expect(",", char)
            put(char)
            char = yield from _skip(put)
            if char == close:
                raise Malformed
    put(close)


def _skip(put: Put, first: str = "") -> Reading[str]:
    char = first or (yield)
    while char in BLANKS:
        put(char)
        char = yield
    return char


def read_string(put: Put) -> Reading[None]:
    """A string whose opening quote has been read, through its closing one."""
    while (char := (yield)) != '"':
        if char < " ":
            put(json.dumps(char)[1:-1])
        elif char != "\\":
            put(char)
        else:
            escape = yield
            if escape not in '"\\/bfnrtu':
                raise Malformed
            digits = ""
            while escape == "u" and len(digits) < 4:
                digits += yield
                if digits[-1] not in _HEX:
                    raise Malformed
            put(char + escape + digits)
    put('"')


def read_text(most: int) -> Reading[str]:
    """What a string says, of at most `most` characters as written; its opening quote has been read."""
    spelled = ['"']

    def put(text: str) -> None:
        spelled.append(text)
        if len(spelled) > most + 2:
            raise Malformed

    yield from read_string(put)
    return str(json.loads("".join(spelled)))
