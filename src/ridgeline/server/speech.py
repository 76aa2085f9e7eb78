"""What a model's text says in OpenAI's terms: content, reasoning_content and tool_calls, whole or as deltas.

A Hearing is how a request's answers are to be understood; each choice has a Speech of its own. Must not know engines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from ridgeline.engine.records import Token
from ridgeline.text.calls import CallParser, Syntax
from ridgeline.text.detokenize import Detokenizer
from ridgeline.text.pieces import ARGUMENTS, CALL, CONTENT, REASONING, Piece, joined
from ridgeline.text.reasoning import Marks, ReasoningParser
from ridgeline.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Hearing:
    """`marks`: of thoughts, of which the prompt has opened one or not (`inside`). `syntax`: of calls of `names`, which
    are told as tool_calls, or as the one function_call of `old` clients."""

    marks: Marks | None = None
    inside: bool = False
    syntax: Syntax | None = None
    names: Collection[str] = ()
    old: bool = False


class Speech:
    """One choice: its text in, deltas of its message out. `id` tells its calls from all others."""

    def __init__(self, hearing: Hearing, id: str, short_ids: bool = False) -> None:
        self._reasoning = ReasoningParser(hearing.marks, hearing.inside) if hearing.marks is not None else None
        self._calls = CallParser(hearing.syntax, hearing.names) if hearing.syntax is not None else None
        self._id, self._short_ids, self.old = id, short_ids, hearing.old
        self.called = 0  # calls so far

    def push(self, text: str, last: bool = False) -> list[dict[str, Any]]:
        """Deltas of what is certain by now; of all that is left, where this is the `last` text."""
        if self._reasoning is None and self._calls is None:
            return [{"content": text}] if text else []
        return [self._delta(piece) for piece in self._pieces(text, last)]

    def _pieces(self, text: str, last: bool) -> list[Piece]:
        heard = [Piece(CONTENT, text)]
        if self._reasoning is not None:
            heard = self._reasoning.push(text) + (self._reasoning.end() if last else [])
        if self._calls is not None:
            heard = [p for piece in heard for p in (self._calls.push(piece.text) if piece.kind == CONTENT else [piece])]
            heard += self._calls.end() if last else []
        return joined(heard)

    def _delta(self, piece: Piece) -> dict[str, Any]:
        if piece.kind == CONTENT:
            return {"content": piece.text}
        if piece.kind == REASONING:
            return {"reasoning_content": piece.text}
        if self.old:
            self.called += piece.kind == CALL
            return {
                "function_call": {"name": piece.text, "arguments": ""}
                if piece.kind == CALL
                else {"arguments": piece.text}
            }
        if piece.kind == ARGUMENTS:
            return {"tool_calls": [{"index": self.called - 1, "function": {"arguments": piece.text}}]}
        self.called += 1
        function = {"name": piece.text, "arguments": ""}
        call = {"index": self.called - 1, "id": self._call_id(), "type": "function", "function": function}
        return {"tool_calls": [call]}

    def _call_id(self) -> str:
        digest = hashlib.blake2b(f"{self._id}-{self.called}".encode(), digest_size=12).hexdigest()
        return digest[:9] if self._short_ids else f"call_{digest}"


def message(deltas: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The whole message that deltas make."""
    content, thought, calls, old = "", "", list[dict[str, Any]](), dict[str, str]()
    for delta in deltas:
        content += delta.get("content", "")
        thought += delta.get("reasoning_content", "")
        for name, text in delta.get("function_call", {}).items():
            old[name] = old.get(name, "") + text
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                calls.append({key: call[key] for key in ("id", "type")} | {"function": dict(call["function"])})
            else:
                calls[-1]["function"]["arguments"] += call["function"]["arguments"]
    shown = content if content or not (calls or old) else None
    found: dict[str, Any] = {"role": "assistant", "content": shown, "refusal": None}
    if thought:
        found["reasoning_content"] = thought
    if calls:
        found["tool_calls"] = calls
    if old:
        found["function_call"] = old
    return found


class ThoughtCount:
    """How many tokens of a choice were thoughts, their marks included."""

    def __init__(self, hearing: Hearing, tokenizer: Tokenizer) -> None:
        self._parser = ReasoningParser(hearing.marks, hearing.inside) if hearing.marks is not None else None
        self._text = Detokenizer(tokenizer, skip_special=False)
        self._open = 0  # tokens of which it is not known yet
        self.tokens = 0

    def add(self, tokens: Iterable[Token]) -> None:
        for token in tokens:
            if self._parser is None or self._parser.thinking is False:
                return
            was = self._parser.thinking
            pieces = self._parser.push(self._text.push(token.id))
            self._open += 1
            if was or self._parser.thinking or any(piece.kind == REASONING for piece in pieces):
                self.tokens += self._open
                self._open = 0
