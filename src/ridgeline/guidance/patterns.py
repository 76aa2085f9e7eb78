"""Patterns: what the text of a regular expression tells of what it matches.

An example is as short as can be read off the text, and no more than a guess, which a matcher checks: what is not
understood gives none. It must not know grammars or tokens.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from itertools import chain

_MOST = 100_000  # characters of an example
_LOOKS = 60_000  # at whether a part of a class has a character, in all: some 0.1 s
_LIKED = "a0A-_. :/@"  # characters that are taken where a class has them
_NAMED = {"d": "0", "w": "a", "s": " ", "D": "a", "W": " ", "S": "a"}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a", "0": "\0"}
_POSIX: dict[str, Callable[[str], bool]] = {
    "alpha": lambda c: c.isascii() and c.isalpha(), "digit": lambda c: c.isascii() and c.isdigit(),
    "alnum": lambda c: c.isascii() and c.isalnum(), "upper": lambda c: "A" <= c <= "Z",
    "lower": lambda c: "a" <= c <= "z", "word": lambda c: c.isascii() and (c.isalnum() or c == "_"),
    "space": lambda c: c in " \t\n\r\f\v", "punct": lambda c: c.isascii() and c.isprintable() and not c.isalnum(),
}  # fmt: skip
_ESCAPED: dict[str, Callable[[str], bool]] = {
    "d": lambda c: c.isdigit(), "w": lambda c: c.isalnum() or c == "_", "s": lambda c: c.isspace(),
}  # fmt: skip


class _Unread(Exception):
    """Something of a pattern that is not understood here."""


def example(pattern: str) -> str | None:
    """A short text that a pattern, as Rust's regex crate or JSON Schema writes it, matches from end to end."""
    reader = _Reader(pattern)
    try:
        found = reader.either()
        found.encode()  # surrogates are no text
    except (_Unread, IndexError, ValueError, OverflowError, RecursionError):
        return None
    return found if reader.at == len(pattern) else None


class _Reader:
    """Reads a pattern once, from left to right; each method gives the example of what it has read."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.at = pattern, 0
        self.spaced = False  # flag x
        self.looks = 0

    @property
    def next(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def one(self) -> str:
        """The next character; IndexError behind the last."""
        self.at += 1
        return self.pattern[self.at - 1]

    def take(self, text: str) -> bool:
        taken = self.pattern.startswith(text, self.at)
        self.at += len(text) if taken else 0
        return taken

    def until(self, mark: str) -> str:
        begin, self.at = self.at, self.pattern.index(mark, self.at)
        self.at += len(mark)
        return self.pattern[begin : self.at - len(mark)]

    def either(self) -> str:
        """Branches: the shortest."""
        spaced = self.spaced
        best = self.sequence()
        while self.take("|"):
            best = min(best, self.sequence(), key=len)
        self.spaced = spaced
        return best

    def sequence(self) -> str:
        found = ""
        while self.next and self.next not in "|)":
            if self.spaced and self.next.isspace():
                self.at += 1
                continue
            if self.spaced and self.next == "#":
                self.at = (self.pattern.find("\n", self.at) + 1) or len(self.pattern)
                continue
            piece = self.atom()
            times = self.times()
            if len(found) + len(piece) * times > _MOST:
                raise _Unread
            found += piece * times
        return found

    def times(self) -> int:
        """How often at least what came before is to be repeated; of several such marks all."""
        least = 1
        while self.next and self.next in "*+?{":
            if self.next == "{":
                self.at += 1
                low = self.until("}").partition(",")[0].strip()
                least = min(least * int(low or 0), _MOST + 1)
            else:
                least *= self.next == "+"
                self.at += 1
            self.take("?")  # lazy, which is the same here
        return least

    def atom(self) -> str:
        mark = self.one()
        if mark == "(":
            return self.group()
        if mark == "[":
            return self.pick(*self.members())
        if mark == "\\":
            return self.escape()
        return {".": "a", "^": "", "$": ""}.get(mark, mark)

    def group(self) -> str:
        if self.take("?"):
            if self.take("P<") or (self.next == "<" and self.pattern[self.at + 1] not in "=!" and self.take("<")):
                self.until(">")
            else:
                flags = ""
                while (mark := self.one()) not in ":)":
                    flags += mark
                if not flags.replace("-", "").isalpha() and flags:
                    raise _Unread  # looking around
                self.spaced = "x" in flags.partition("-")[0] or (self.spaced and "x" not in flags)
                if mark == ")":
                    return ""
        found = self.either()
        if not self.take(")"):
            raise _Unread
        return found

    def escape(self) -> str:
        """What follows a backslash outside of a class."""
        if self.one() in "bBAzZG":
            return ""
        self.at -= 1
        inside = self.escaped()
        return inside if isinstance(inside, str) else self.pick([inside], "", False)

    def escaped(self) -> str | Callable[[str], bool]:
        """A character, or what tells a class's characters."""
        mark = self.one()
        if mark in "pP":
            name = self.until("}") if self.take("{") else self.one()
            return _category(name, mark == "P")
        if mark.lower() in _ESCAPED:
            inside = _ESCAPED[mark.lower()]
            return (lambda c: not inside(c)) if mark.isupper() else inside
        if mark in "xuU":
            size = {"x": 2, "u": 4, "U": 8}[mark]
            if self.take("{"):
                return chr(int(self.until("}"), 16))
            self.at += size
            return chr(int(self.pattern[self.at - size : self.at], 16))
        return _CONTROLS.get(mark, mark)

    def members(self) -> tuple[list[Callable[[str], bool]], str, bool]:
        """What tells the characters of a class, behind its bracket, and some of them; whether it is of all others."""
        other, found, some = self.take("^"), list[Callable[[str], bool]](), list[str]()
        first = True
        while first or not self.take("]"):
            if self.pattern.startswith(("&&", "--", "~~"), self.at):
                raise _Unread
            inside, low = self.member()
            found.append(inside)
            some.append(low)
            first = False
        return found, "".join(some), other

    def member(self) -> tuple[Callable[[str], bool], str]:
        if self.take("[:"):
            other, named = self.take("^"), _POSIX.get(self.until(":]"))
            if named is None:
                raise _Unread
            return lambda c: named(c) != other, ""
        if self.take("["):
            inner, some, other = self.members()
            return lambda c: self.has(inner, c) != other, some
        low = self.single()
        if not isinstance(low, str):
            return low, ""
        if self.next != "-" or self.pattern[self.at + 1] == "]":
            return lambda c: c == low, low
        self.at += 1
        high = self.single()
        if not isinstance(high, str):
            raise _Unread
        return lambda c: low <= c <= high, low

    def single(self) -> str | Callable[[str], bool]:
        mark = self.one()
        return self.escaped() if mark == "\\" else mark

    def pick(self, members: list[Callable[[str], bool]], some: str, other: bool) -> str:
        """A character of a class, one that is liked if it has one."""
        for c in chain(_LIKED, map(chr, range(0x20, 0x7F)), "\n\t", some, map(chr, range(0xA0, 0xD800))):
            if self.has(members, c) != other:
                return c
        raise _Unread

    def has(self, members: list[Callable[[str], bool]], c: str) -> bool:
        self.looks += len(members)
        if self.looks > _LOOKS:
            raise _Unread
        return any(inside(c) for inside in members)


def _category(name: str, other: bool) -> Callable[[str], bool]:
    """Whether a character is of a general category, or of a script as far as its name tells."""
    other ^= name.startswith("^")
    name = name.lstrip("^").rpartition("=")[2]
    short = {"Letter": "L", "Uppercase": "Lu", "Lowercase": "Ll", "Alphabetic": "L", "Number": "N", "Punctuation": "P"}
    name = short.get(name, name)
    if len(name) <= 2:
        return lambda c: unicodedata.category(c).startswith(name) != other
    words = {"HAN": "CJK UNIFIED"}.get(name.upper(), name.upper())
    return lambda c: unicodedata.name(c, "").startswith(words) != other
