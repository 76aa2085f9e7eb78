"""Tool calls in the text that a model writes, found one character at a time.

Owns what of the text is a call and what is content: marks are held back while they are partial, blanks before a call
are dropped, and what only looks like a call comes out as the content that it is. A call is of a tool that was given.
It must not know tokens, templates or any API's objects.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from ridgeline.text.json_stream import (
    BLANKS,
    Malformed,
    Put,
    Reading,
    expect,
    is_scalar,
    read_text,
    read_value,
    skip_blanks,
)  # fmt: skip
from ridgeline.text.pieces import ARGUMENTS, CALL, CONTENT, Piece, joined

_KEY = 64  # characters of a key that is worth reading


class Call:
    """A call while it is read: pieces go to `out` once its name is known and its arguments have begun."""

    def __init__(self, names: Collection[str], out: list[Piece]) -> None:
        self._names, self._out = names, out
        self._name = ""
        self._held: list[str] = []
        self.shown = self.given = False  # whether pieces went out; whether arguments came

    @property
    def schema(self) -> Mapping[str, Any]:
        """Of the arguments, as far as it is known."""
        return self._names[self._name] if isinstance(self._names, Mapping) and self._name else {}

    @property
    def longest(self) -> int:
        """Characters of the longest name of a tool, however they are escaped."""
        return 6 * max(map(len, self._names), default=0)

    def take_name(self, name: str) -> None:
        """Malformed unless it is the first name, and a tool's."""
        if self._name or name not in self._names:
            raise Malformed
        self._name = name
        if self._held:
            self._show()

    def put(self, text: str) -> None:
        """A piece of the arguments' JSON."""
        self.given = True
        self._held.append(text)
        if self._name:
            self._show()

    def end(self) -> None:
        """The call is complete; without arguments they are an empty object."""
        if not self._name:
            raise Malformed
        if not self.given:
            self.put("{}")

    def _show(self) -> None:
        if not self.shown:
            self._out.append(Piece(CALL, self._name))
        self.shown = True
        self._out.extend(Piece(ARGUMENTS, text) for text in self._held)
        self._held.clear()


class Syntax(msgspec.Struct, frozen=True):
    """How calls stand in text. `opens` begins one wherever it stands, `more` a further one right behind a call, and
    what `closes` may follow there, in this order; `bare`: an answer may begin with a call's "{" alone. `silent` marks
    say nothing."""

    opens: str
    read: Callable[[Call], Reading[None]]
    closes: tuple[str, ...] = ()
    more: str = ""
    bare: bool = False
    silent: tuple[str, ...] = ()


class CallParser:
    """Text to pieces, content and calls. `names` are the tools that may be called, with their schemas if known."""

    def __init__(self, syntax: Syntax, names: Collection[str]) -> None:
        self._syntax, self._names = syntax, names
        self._out: list[Piece] = []
        self._todo: deque[str] = deque()
        self._held = ""  # blanks, and the beginning of a mark
        self._begun = self._called = False  # whether anything was said; whether any call was made
        self._behind = False  # whether a call has just ended,
        self._closing: tuple[str, ...] = ()  # and what may follow it then
        self._call = Call((), [])
        self._reading: Reading[None] | None = None
        self._tried = ""  # what was read of a call, and not put out

    def push(self, text: str) -> list[Piece]:
        """The pieces that are certain by now."""
        self._todo.extend(text)
        self._work()
        return self._take()

    def end(self) -> list[Piece]:
        """The rest, once no more text comes: the beginning of a call that shows nothing yet is content."""
        while self._reading is not None and not self._call.shown:
            self._give_up()
            self._work()
        if self._held.strip(BLANKS) or not (self._called or self._call.shown):
            self._out.append(Piece(CONTENT, self._held))
        self._held = ""
        return self._take()

    def _take(self) -> list[Piece]:
        found = joined(self._out)
        self._out.clear()  # a call that is being read has it too
        return found

    def _work(self) -> None:
        while self._todo:
            char = self._todo.popleft()
            if self._reading is None:
                self._look(char)
            else:
                self._read(self._reading, char)

    def _look(self, char: str) -> None:
        """A character of content, or of a mark."""
        self._held += char
        mark = self._held.lstrip(BLANKS)
        marks = self._marks()
        if mark in marks:
            self._found(mark)
        elif mark and not any(known.startswith(mark) for known in marks):
            held, self._held = self._held, ""
            self._say(held, len(held) - len(mark) + 1)

    def _marks(self) -> list[str]:
        marks = [self._syntax.opens, *self._syntax.silent]
        if self._behind:
            marks += [*self._closing, *filter(None, [self._syntax.more])]
        if self._syntax.bare and not self._begun:
            marks.append("{")
        return marks

    def _found(self, mark: str) -> None:
        held, self._held = self._held, ""
        if mark in self._syntax.silent:
            return
        self._begun = True
        if mark in self._closing:
            self._closing = self._closing[self._closing.index(mark) + 1 :]
            self._behind = bool(self._closing)
            return
        self._call = Call(self._names, self._out)
        self._reading = self._syntax.read(self._call)
        next(self._reading)
        self._tried = held
        if mark == "{":
            self._tried = held[:-1]
            self._todo.appendleft(mark)

    def _read(self, reading: Reading[None], char: str) -> None:
        """A character of what may be a call."""
        put_out = len(self._out)
        self._tried += char
        try:
            reading.send(char)
        except StopIteration:
            self._reading, self._behind, self._called = None, True, True
            self._closing = self._syntax.closes
        except Malformed:
            self._give_up()
        else:
            if len(self._out) > put_out:
                self._tried = ""

    def _give_up(self) -> None:
        """It is no call, or no more of one: say its first character, and look at the rest anew."""
        self._reading = None
        self._called |= self._call.shown
        tried = self._tried
        self._say(tried, len(tried) - len(tried.lstrip(BLANKS)) + 1)

    def _say(self, text: str, count: int) -> None:
        """So many characters are content; the rest is looked at next."""
        self._begun, self._behind, self._closing = True, False, ()
        self._out.append(Piece(CONTENT, text[:count]))
        self._todo.extendleft(reversed(text[count:]))


def read_object(call: Call, first: str = "") -> Reading[None]:
    """{"name": ..., "arguments": {...}}, its keys in any order; `parameters` are arguments too, a `tool_name` a name.

    Beside these an id and `type` may stand; any other key, before the call is shown, tells that this is something else.
    """
    expect("{", (yield from skip_blanks(first)))
    char = yield from skip_blanks()
    while char != "}":
        expect('"', char)
        key = yield from read_text(_KEY)
        expect(":", (yield from skip_blanks()))
        char = yield from skip_blanks()
        if key in ("name", "tool_name"):
            expect('"', char)
            call.take_name((yield from read_text(call.longest)))
            char = ""
        elif key in ("arguments", "parameters"):
            char = yield from _read_arguments(call, char)
        elif key in ("id", "tool_call_id", "type") or call.shown:
            char = yield from read_value(char, _drop)
        else:
            raise Malformed
        char = yield from skip_blanks(char)
        if char != "}":
            expect(",", char)
            char = yield from skip_blanks()
            expect('"', char)
    call.end()


def _drop(text: str) -> None:
    pass


def _read_arguments(call: Call, first: str) -> Reading[str]:
    """An object, or what models write for one: null, or its JSON within a string."""
    if call.given:
        raise Malformed
    if first == "{":
        return (yield from read_value(first, call.put))
    spelled: list[str] = []
    char = yield from read_value(first, spelled.append)
    try:
        value = json.loads("".join(spelled))
        text = "{}" if value is None else value.strip() or "{}"
        good = isinstance(json.loads(text), dict)
    except (ValueError, AttributeError, RecursionError):
        good = False
    if not good:
        raise Malformed
    call.put(text)
    return char


def read_listed(call: Call) -> Reading[None]:
    """An object in a list, `[{...}, ...]`."""
    char = yield from _skip_bracket()
    yield from read_object(call, char)


def _skip_bracket() -> Reading[str]:
    char = yield from skip_blanks()
    return (yield from skip_blanks()) if char == "[" else char


def read_mistral(call: Call) -> Reading[None]:
    """The same, or NAME[ARGS]{...}, the newer form."""
    char = yield from _skip_bracket()
    if char == "{":
        return (yield from read_object(call, char))
    head = char
    while (char := (yield)) != "{":
        head += char
        if len(head) > call.longest + _KEY:
            raise Malformed
    name, *marks = head.rstrip(BLANKS).split("[")
    if any(mark != "ARGS]" and not mark.startswith("CALL_ID]") for mark in marks):
        raise Malformed
    call.take_name(name.rstrip(BLANKS))
    yield from read_value(char, call.put)


def read_fenced(quote: str) -> Callable[[Call], Reading[None]]:
    """Gemma's: call:NAME{key:value,...}, its strings between two `quote`s, put out as JSON."""

    def read(call: Call) -> Reading[None]:
        for wanted in "call:":
            expect(wanted, (yield))
        name = ""
        while (char := (yield)) != "{":
            name += char
            if len(name) > call.longest:
                raise Malformed
        call.take_name(name.strip(BLANKS))
        yield from _read_members(call.put, quote, "{")

    return read


def _read_members(put: Put, quote: str, first: str, depth: int = 0) -> Reading[None]:
    """Members of an object or a list that began with `first`, to its end."""
    if depth == _KEY:
        raise Malformed
    close, separator = ("]" if first == "[" else "}"), ""
    put(first)
    char = yield from skip_blanks()
    while char != close:
        put(separator)
        separator = ","
        if first == "{":
            key = ""
            while char != ":":
                key += char
                if len(key) > _KEY or char in "{}[],":
                    raise Malformed
                char = yield
            put(json.dumps(key.strip(BLANKS).removeprefix(quote).removesuffix(quote), ensure_ascii=False) + ":")
            char = yield from skip_blanks()
        char = yield from _read_plain(put, quote, char, depth)
        char = yield from skip_blanks(char)
        if char != close:
            expect(",", char)
            char = yield from skip_blanks()
    put(close)


def _read_plain(put: Put, quote: str, first: str, depth: int) -> Reading[str]:
    """A value; the character behind it, or "" where the value itself shows its end."""
    if first in "[{":
        yield from _read_members(put, quote, first, depth + 1)
        return ""
    text = first
    while quote.startswith(text) and text != quote:
        text += yield
    if text == quote:
        yield from _read_quoted(put, quote)
        return ""
    while text[-1] not in ",]}":
        text += yield
    word = text[:-1].strip(BLANKS)
    put(word if is_scalar(word) else json.dumps(word, ensure_ascii=False))
    return text[-1]


def _read_quoted(put: Put, quote: str) -> Reading[None]:
    put('"')
    held = ""
    while held != quote:
        held += yield
        while not quote.startswith(held):
            put(json.dumps(held[0], ensure_ascii=False)[1:-1])
            held = held[1:]
    put('"')
