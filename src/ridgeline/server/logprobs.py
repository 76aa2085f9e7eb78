"""The parallel lists of /v1/completions logprobs, and prompts as those lists need them.

A token that holds part of a character is spelled "bytes:\\xNN", as OpenAI does, so that no two tokens of a map share
a key by accident. Offsets are in characters of the choice's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ridgeline.engine.params import SamplingParams
from ridgeline.engine.records import Token
from ridgeline.server.openai import MIN_LOGPROB
from ridgeline.text.detokenize import Detokenizer
from ridgeline.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """A prompt's token ids and, to be echoed, its text and where in the text each token begins."""

    text: str
    ids: list[int]
    offsets: list[int]


def read_prompt(tokenizer: Tokenizer, given: str | list[int], echo: bool) -> Prompt:
    """A prompt given as text or as ids; its text and offsets only where it will be echoed.

    InvalidRequest for text that is not valid Unicode.
    """
    if not echo:
        return Prompt("", tokenizer.encode(given, add_special=True) if isinstance(given, str) else given, [])
    if isinstance(given, str):
        spans = tokenizer.encode_with_offsets(given, add_special=True)
        return Prompt(given, [id for id, _, _ in spans], [start for _, start, _ in spans])
    text = Detokenizer(tokenizer, skip_special=False)
    shown, offsets = "", []
    for id in given:
        offsets.append(len(shown))
        shown += text.push(id) if 0 <= id < tokenizer.vocab_size else ""
    return Prompt(shown + text.flush(), given, offsets)


class LogprobLists:
    """Collects tokens of one choice, each with `count` alternatives; `take` gives what came since the last time."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, count: int) -> None:
        self._tokenizer, self._count = tokenizer, count
        self._text = Detokenizer(tokenizer, params.skip_special_tokens)
        self._at = 0
        self._lists = _empty()

    def add_prompt(self, prompt: Prompt, scores: Sequence[Token]) -> None:
        """The prompt's own tokens; the first has no logprob, and none has without scores."""
        self._at = len(prompt.text)
        if not scores and len(prompt.ids) > 1:
            return
        for i, (id, offset) in enumerate(zip(prompt.ids, prompt.offsets, strict=True)):
            self._append(Token(id) if i == 0 else scores[i - 1], offset, scored=i > 0)

    def add(self, tokens: Sequence[Token], end: int) -> None:
        """Generated tokens; `end` bounds their offsets: a stop string may have cut the text short."""
        for token in tokens:
            self._append(token, min(self._at, end), scored=True)
            self._at += len(self._text.push(token.id))

    def take(self) -> dict[str, Any]:
        lists, self._lists = self._lists, _empty()
        if not self._count:
            lists["top_logprobs"] = None
        return lists

    def _append(self, token: Token, offset: int, *, scored: bool) -> None:
        self._lists["text_offset"].append(offset)
        self._lists["tokens"].append(self._spell(token.id))
        self._lists["token_logprobs"].append(max(token.logprob, MIN_LOGPROB) if scored else None)
        top = {self._spell(id): max(logprob, MIN_LOGPROB) for id, logprob in token.top[: self._count]}
        # The chosen token is always in its own map, as with OpenAI.
        top.setdefault(self._spell(token.id), max(token.logprob, MIN_LOGPROB))
        self._lists["top_logprobs"].append(top if scored else None)

    def _spell(self, id: int) -> str:
        spelled = self._tokenizer.token_bytes(id)
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def _empty() -> dict[str, Any]:
    return {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
