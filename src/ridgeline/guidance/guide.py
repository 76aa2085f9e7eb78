"""Guide: what one answer may say next, and how it ends in time.

Follows from the grammar, the tokens so far and how many there may be in all, so that a replay is guided the same. Must
not know sequences, batches or threads; a call takes a fraction of a millisecond, but for one that searches, and for bad
grammars.
"""

from __future__ import annotations

from codecs import utf_8_decode
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from ridgeline.guidance.closing import Ways, rejoin

if TYPE_CHECKING:  # llguidance is loaded with the first grammar
    from llguidance import LLMatcher

    from ridgeline.guidance.vocabulary import Vocabulary

Mask = np.ndarray[Any, np.dtype[np.uint32]]

_OUT_OF_BOUNDS = "what may follow was not found within the bounds of grammars"
_STATES = 64  # looked at for a way that fits in what is left
_SIZES = {0xC: 2, 0xD: 2, 0xE: 3, 0xF: 4}  # of characters, by how their first bytes begin
_SPARE = 16  # tokens beyond twice a way's, with which it need not be short


class _MustSearch(Exception):
    """A search is needed."""


class Move(msgspec.Struct, frozen=True, gc=False):
    """What follows a sampled token: `tokens` are known now, the sampled one first if it was taken, and `mask` says what
    may come next; None: they end the answer, or with `failed` nothing does.

    Without tokens but with a mask the sampled one led nowhere, and another is to be sampled in its place.
    """

    tokens: tuple[int, ...]
    mask: Mask | None = None
    failed: str = ""


class Guide:
    """`left` tokens may follow, of which `closing` is a way to the end, if one is known: then it always fits.

    A sampled token is taken if a way to the end fits behind it too; else the known way's next one is in its place. With
    `jumps` tokens that must follow are taken without sampling them; they are the same with and without. An answer that
    is not `guaranteed` is not made to end where it may as well go on: there the last token is its own, though it be a
    part of a character.
    """

    def __init__(
        self, matcher: LLMatcher, ways: Ways, way: list[int] | None, left: int, jumps: bool, guaranteed: bool
    ) -> None:
        self._matcher, self._ways, self._vocabulary, self._jumps = matcher, ways, ways.vocabulary, jumps
        self.closing, self.left, self._guaranteed = way, left, guaranteed
        self.forced = 0  # tokens taken without sampling
        self._begun = b""  # of a character in which the answer may be cut off

    def first(self) -> Move:
        """What the answer may begin with."""
        mask = self._matcher.compute_bitmask()
        self._ways.spent |= (bad := self._matcher.is_error())
        if self.closing and (self._must_close or bad):
            return Move((), self._only(self.closing[0]))
        return Move((), failed=_OUT_OF_BOUNDS) if bad else Move((), _words(mask, self._vocabulary.size))

    def advance(self, token: int) -> Move:
        """The answer goes on with a token that its mask allowed."""
        move = self.glance(token, patient=True)
        assert move is not None
        return move

    def glance(self, token: int, patient: bool = False) -> Move | None:
        """The same; None, and nothing has moved, if that takes a search and the caller is not `patient`."""
        if token in self._vocabulary.ends:
            return Move((token,))
        try:
            mask = self._take(token, patient)
        except _MustSearch:
            return None
        if mask is not None:
            return self._go_on([token], mask)
        if self.closing is None:
            return Move((), failed=_OUT_OF_BOUNDS)
        first = self.closing[0]
        if token == first:
            return self._follow()
        if not self._jumps:
            return Move((), self._only(first))
        return Move((first,)) if first == self._vocabulary.end else self.advance(first)

    def replay(self, tokens: tuple[int, ...]) -> Move:
        """What may follow tokens that the answer has had already."""
        move = self.first()
        jumps, self._jumps = self._jumps, False
        for token in tokens:
            move = self.advance(token)
        self._jumps = jumps
        if tokens and jumps and move.mask is not None:
            return self._go_on([], move.mask)
        return Move((), move.mask, move.failed)

    def _go_on(self, tokens: list[int], mask: bytes | Mask) -> Move:
        """Take what must follow, as far as that goes."""
        size = self._vocabulary.size
        words = _words(mask, size) if isinstance(mask, bytes) else mask
        while True:
            if self._begun and not self.left:
                return Move(tuple(tokens), words)
            if self._must_close and self._guaranteed:
                return self._close(tokens)
            only = self.closing[0] if self.closing and self._must_close else _single(words, self._vocabulary)
            if only < 0:
                return Move(tuple(tokens), words)
            if not self._jumps:
                return Move(tuple(tokens), self._only(only))
            following = None if only == self._vocabulary.end else self._take(only)
            if following is None:  # the end, or one of the matcher's bounds
                return self._ended([*tokens, only])
            tokens.append(only)
            self.forced += 1
            words = _words(following, size)

    def _ended(self, tokens: list[int]) -> Move:
        """Behind a token that must follow and is the end, or is where the matcher cannot go on."""
        self.forced += 1
        if tokens[-1] == self._vocabulary.end:
            return Move(tuple(tokens))
        if self.closing is None:
            return Move(tuple(tokens[:-1]), failed=_OUT_OF_BOUNDS)
        return self._close(tokens[:-1])

    @property
    def _must_close(self) -> bool:
        return self.closing is not None and self.left <= len(self.closing) and not self._may_be_cut

    @property
    def _may_be_cut(self) -> bool:
        """Whether the answer may end as it is, by an end token or without."""
        return not self._guaranteed and self.closing == [self._vocabulary.end]

    def _close(self, tokens: list[int]) -> Move:
        """Go to the end by the known way, for which there is just room."""
        assert self.closing is not None
        if not self._jumps:
            return Move(tuple(tokens), self._only(self.closing[0]))
        self.forced += len(self.closing)
        return Move((*tokens, *self.closing))

    def _follow(self) -> Move:
        """Go to the end by the known way, though the matcher cannot follow: it has met one of its bounds."""
        assert self.closing is not None
        if self._jumps:
            return self._close([])
        token, self.closing = self.closing[0], self.closing[1:]
        self.left = len(self.closing)
        return self._close([token])

    def _take(self, token: int, patient: bool = True) -> bytes | None:
        """Go on with a token; None, and nothing moves, if it cannot be taken. The mask behind it."""
        matcher = self._matcher.deep_copy()
        mask = matcher.compute_bitmask() if matcher.consume_token(token) else b""  # what is asked below is then quick
        if matcher.is_error():
            self._ways.spent = True
            return None
        way, left = self.closing, self.left - 1
        begun = self._begins(token, matcher)
        if begun:
            way = [self._vocabulary.end]  # as where the character began
        elif not left and self._may_be_cut:
            if not matcher.is_accepting() or _single(_words(mask, self._vocabulary.size), self._vocabulary) >= 0:
                return None  # cut off there, it would lack something, or have ended without its end token
        elif way is not None:
            way = way[1:] if token == way[0] and len(way) > 1 else self._way(matcher, way, left, patient)
            if way is None or len(way) > left:
                return None
        self._matcher, self.closing, self.left, self._begun = matcher, way, left, begun
        return mask

    def _begins(self, token: int, after: LLMatcher) -> bytes:
        """What a token has of a character that it begins, or goes on with, and in which the answer may be cut off: it
        could end before and behind the character. `after` is the matcher behind the token."""
        if not self._may_be_cut:
            return b""
        word = self._vocabulary.words[token]
        try:
            _, used = utf_8_decode(self._begun + word, "strict", False)
        except UnicodeDecodeError:
            return b""
        begun = (self._begun + word)[used:]
        if begun and used:
            matcher, before = self._matcher.deep_copy(), word[: len(word) - len(begun)]
            if (
                not matcher.consume_tokens(self._vocabulary.matching.tokenize_bytes(before))
                or not matcher.is_accepting()
            ):
                return b""
        if begun:
            missing = _SIZES[begun[0] >> 4] - len(begun)
            rest = self._ways.straight(after, [self._vocabulary.end], missing + 1) or []
            if sum(len(self._vocabulary.words[id]) for id in rest[:-1]) != missing:
                return b""
        return begun

    def _way(self, matcher: LLMatcher, old: list[int], most: int, patient: bool) -> list[int] | None:
        """A way of at most `most` tokens; one that need not be short is not searched."""
        if most < 2 * len(old) + _SPARE and (left := rejoin(matcher, old)) and len(left) <= most:
            return left
        if way := self._ways.straight(matcher, old, most):
            return way
        if not patient:
            raise _MustSearch
        return self._ways.within(matcher, old, _STATES, max(most, 1))

    def _only(self, token: int) -> Mask:
        mask = np.zeros(-(-self._vocabulary.size // 32), np.uint32)
        mask[token // 32] = np.uint32(1 << token % 32)
        return mask


def _words(mask: bytes, size: int) -> Mask:
    return np.frombuffer(mask.ljust(-(-size // 32) * 4, b"\0"), np.uint32)[: -(-size // 32)]


def _single(mask: Mask, vocabulary: Vocabulary) -> int:
    """The token that must follow, or -1. Where only end tokens may, it is the model's own."""
    places = np.flatnonzero(mask)
    if not 0 < len(places) <= len(vocabulary.ends):
        return -1
    words = {int(at): int(mask[at]) for at in places}
    for end in vocabulary.ends:
        if end // 32 in words:
            words[end // 32] &= ~(1 << end % 32)
    rest = [(at, word) for at, word in words.items() if word]
    if not rest:
        return vocabulary.end
    ends = any(mask[end // 32] >> np.uint32(end % 32) & 1 for end in vocabulary.ends)
    (at, word), more = rest[0], rest[1:]
    return -1 if ends or more or word & (word - 1) else at * 32 + word.bit_length() - 1
