"""Pieces of an answer: what a model's text turns out to be, bit by bit, once its marks are understood.

`reasoning` and `calls` turn text into pieces. How text is cut on its way in never changes what the pieces join to.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

CONTENT, REASONING = "content", "reasoning"
CALL, ARGUMENTS = "call", "arguments"


class Piece(NamedTuple):
    """Text of a kind: of the answer, of the thoughts before it, a called tool's name, or JSON of its arguments."""

    kind: str
    text: str


class Parser(Protocol):
    """`push` gives what is certain by now; `end` the rest, once no more text comes."""

    def push(self, text: str) -> list[Piece]: ...

    def end(self) -> list[Piece]: ...


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbours of one kind as one piece, none empty; each call stays a piece of its own."""
    found: list[Piece] = []
    for piece in pieces:
        if found and piece.kind == found[-1].kind != CALL:
            found[-1] = Piece(piece.kind, found[-1].text + piece.text)
        elif piece.text:
            found.append(piece)
    return found
