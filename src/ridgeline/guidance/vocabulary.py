"""Vocabulary: a tokenizer's tokens as matchers take them, and in the orders in which a closing is searched.

Made once per model; it must not know grammars.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from llguidance import LLTokenizer

_CLOSERS = frozenset(b'"]}')
_SEPARATORS = b"@-:./_ "
_LATER = (b"\x80", b"\x90", b"\xa0")  # bytes of which one is right behind any first ones of a character
_ANCHOR = "\x02"  # before a text, for tokenizers that put a space in front of its first word


class Tokens(Protocol):
    """What is needed of a tokenizer."""

    vocab_size: int
    bos_id: int | None
    eos_ids: frozenset[int]
    eos_token: str

    def encode(self, text: str, add_special: bool, parse_special: bool = True) -> list[int]: ...

    def token_bytes(self, token_id: int) -> bytes: ...

    def is_special(self, token_id: int) -> bool: ...


class Vocabulary:
    """`size` is that of the model's logits; ids beyond the tokenizer's are never allowed. `end` is the end token that
    is taken where only they are allowed, `words` the bytes of all tokens.

    `quoting` and `closing` are the tokens that begin with a quote or a bracket and close most, `marks` those
    of one byte that is no letter or digit, separators first, `short` and `long` those of ASCII by their length, `parts`
    the others. `text` is one that fits where any text does, as in a string; `inside` and `outside` are some that close
    or fill, where it does and does not.
    """

    def __init__(self, tokens: Tokens, size: int) -> None:
        count = min(size, tokens.vocab_size)
        self.size = size
        self.special = frozenset(i for i in range(count) if tokens.is_special(i))
        self.words = [tokens.token_bytes(i) for i in range(count)] + [b""] * (size - count)
        self.ends = sorted(i for i in tokens.eos_ids if i < size)
        named = (i for i in self.ends if self.words[i] == tokens.eos_token.encode())
        self.end = next(named, self.ends[0])
        self.matching = LLTokenizer(_Wrapper(tokens, self), n_vocab=size, eos_token=[self.end, *self.ends])  # type: ignore[arg-type]
        usable = [i for i, word in enumerate(self.words) if word and i not in self.special and i not in self.ends]
        plain = [i for i in usable if self.words[i].isascii()]
        self.short = self._by(plain, lambda word: (len(word), word != b",", not word.isalnum(), word))
        self.long = self._by(plain, lambda word: (-len(word), word))
        marks = [i for i in plain if len(self.words[i]) == 1 and not self.words[i].isalnum()]
        self.marks = self._by(marks, lambda word: (word not in _SEPARATORS, _SEPARATORS.find(word), word))
        single = {self.words[i]: i for i in reversed(usable) if len(self.words[i]) == 1}
        brackets, quotes, self.text = (
            [single[c] for c in marks if c in single] for marks in ((b"}", b"]"), (b'"',), (b"~",))
        )
        letters = sorted((c for c in single if c.isascii() and c not in b'"]}'), key=lambda c: (not c.isalnum(), c))
        filling = [single[c] for c in (*letters, *_LATER) if c in single]
        self.outside, self.inside = brackets + quotes + filling, [*quotes, *self.long[:2].tolist(), *filling]
        self.parts = self._by([i for i in usable if not self.words[i].isascii()], lambda word: (len(word), word))
        closers = [i for i in plain if self.words[i][0] in _CLOSERS]
        ordered = sorted(closers, key=lambda i: (not _CLOSERS.issuperset(self.words[i]), -len(self.words[i])))
        self.quoting = np.array([i for i in ordered if self.words[i][:1] == b'"'], np.int64)
        self.closing = np.array([i for i in ordered if self.words[i][:1] != b'"'], np.int64)

    def _by(self, ids: list[int], key: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.array(sorted(ids, key=lambda i: key(self.words[i])), np.int64)


class _Wrapper:
    """A tokenizer as LLTokenizer takes it: a call tells the ids of a text, and their bytes join to it."""

    is_tokenizer_wrapper = True

    def __init__(self, tokens: Tokens, vocabulary: Vocabulary) -> None:
        self._tokens, self.tokens = tokens, vocabulary.words
        self.eos_token_id, self.bos_token_id = vocabulary.end, tokens.bos_id
        self.special_token_ids: Sequence[int] = sorted(vocabulary.special)
        self._ids = {word: i for i, word in enumerate(vocabulary.words) if word and i not in vocabulary.special}
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: str | bytes) -> list[int]:
        data = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
        said = data.decode("utf-8", "replace")
        plain = self._tokens.encode(said, add_special=False, parse_special=False)
        if self._spelled(plain) == data:
            return plain
        anchored = self._tokens.encode(_ANCHOR + said, add_special=False, parse_special=False)
        for i in range(len(anchored)):
            if self._spelled(anchored[i:]) == data:
                return anchored[i:]
        return self._greedy(data)

    def _spelled(self, ids: list[int]) -> bytes:
        return b"".join(self.tokens[i] for i in ids)

    def _greedy(self, data: bytes) -> list[int]:
        """The longest token again and again; bytes that no token spells are dropped."""
        ids, at = [], 0
        while at < len(data):
            sizes = range(min(self._longest, len(data) - at), 0, -1)
            size = next((n for n in sizes if data[at : at + n] in self._ids), 0)
            if size:
                ids.append(self._ids[data[at : at + size]])
            at += size or 1
        return ids
