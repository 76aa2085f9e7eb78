"""Thoughts before an answer, told from it by the marks of the model's template.

A thought is open from the start where the prompt ends with its mark, or begins with the answer's first characters.
Blanks around it are no part of it, nor of what follows. It must not know tokens or templates' inner workings.
"""

from __future__ import annotations

import msgspec

from ridgeline.text.json_stream import BLANKS
from ridgeline.text.pieces import CONTENT, REASONING, Piece, joined


class Marks(msgspec.Struct, frozen=True):
    """What stands before a thought, and behind it."""

    opens: str
    closes: str


KNOWN = (
    Marks("<think>", "</think>"),
    Marks("[THINK]", "[/THINK]"),
    Marks("<seed:think>", "</seed:think>"),
    Marks("<|channel>thought", "<channel|>"),
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),
)


def marks_of(template: str) -> Marks | None:
    """Those that a chat template's source speaks of; None where its model thinks in no known way."""
    return next((marks for marks in KNOWN if marks.closes in template), None)


def is_open(marks: Marks, prompt: str) -> bool:
    """Whether a rendered prompt ends within a thought that it has begun."""
    return prompt.rstrip(BLANKS).endswith(marks.opens)


class ReasoningParser:
    """Text to pieces, reasoning and content; `inside`: the prompt has opened the thought."""

    def __init__(self, marks: Marks, inside: bool) -> None:
        self._marks = marks
        self._mark = marks.closes if inside else marks.opens  # looked for next; "": none
        self._begun = False  # whether a thought, or what follows it, has begun to show
        self._held = ""

    @property
    def thinking(self) -> bool | None:
        """Whether what comes next is reasoning; None while that is not known."""
        if self._mark == self._marks.opens:
            return None
        return self._mark == self._marks.closes

    def push(self, text: str) -> list[Piece]:
        found: list[Piece] = []
        self._held += text
        while self._held and self._step(found):
            pass
        return joined(found)

    def end(self) -> list[Piece]:
        held, self._held = self._held, ""
        if self._mark == self._marks.closes:
            return joined([Piece(REASONING, held.rstrip(BLANKS))])
        return joined([Piece(CONTENT, held)])

    def _step(self, found: list[Piece]) -> bool:
        """Take from what is held what is certain; whether to look again."""
        if self._mark == self._marks.opens:
            return self._open(found)
        if not self._begun:
            self._held = self._held.lstrip(BLANKS)
            self._begun = bool(self._held)
        if not self._mark:
            found.append(Piece(CONTENT, self._held))
            self._held = ""
            return False
        return self._think(found)

    def _open(self, found: list[Piece]) -> bool:
        start = self._held.lstrip(BLANKS)
        if start.startswith(self._mark):
            self._held, self._mark = start[len(self._mark) :], self._marks.closes
            return True
        if not self._mark.startswith(start):
            self._mark, self._begun = "", True
            return True
        return False

    def _think(self, found: list[Piece]) -> bool:
        thought, mark, rest = self._held.partition(self._mark)
        if mark:
            found.append(Piece(REASONING, thought.rstrip(BLANKS)))
            self._held, self._mark, self._begun = rest, "", False
            return True
        sure = len(thought) - _overlap(thought, self._mark)
        sure = len(thought[:sure].rstrip(BLANKS))
        found.append(Piece(REASONING, thought[:sure]))
        self._held = thought[sure:]
        return False


def _overlap(text: str, mark: str) -> int:
    """Characters at the end of `text` that may begin `mark`."""
    return next(n for n in range(min(len(text), len(mark)), -1, -1) if text.endswith(mark[:n]))
