"""The way to an answer's end: tokens after which a grammar may stop.

A short one is found by a bounded search, any one by much less. Both follow from a matcher's state and what is passed,
bounded by states looked at and never by time, so that a replay finds the same. They work on copies; the matcher they
are given does not move.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # llguidance is loaded with the first grammar
    from llguidance import LLMatcher

    from ridgeline.guidance.vocabulary import Vocabulary

Bits = np.ndarray[Any, np.dtype[np.uint8]]

_WIDTH = 8  # states of a level that are gone on from, where the first search, of one, leaves much to find
_LONG = 96  # tokens of a way that is not worth looking for a shorter one
_FIRST = 256  # tokens of an order that are looked at first
_DEAR = 512  # what a way may cost
_LOOP = 2  # what a token costs that leaves everything as it was, as text in a string does
_PLACES = 48  # where a way is gone on with that need not be short


class Ways:
    """Finds ways for one grammar. `examples` are tokens that some part of it may ask for, as texts of its patterns.

    `spent` is set where one of the matcher's bounds was met.
    """

    def __init__(self, vocabulary: Vocabulary, examples: list[list[int]]) -> None:
        self.vocabulary, self.examples = vocabulary, examples
        self.spent = False

    def shortest(self, matcher: LLMatcher, old: list[int], states: int, most: int = 0) -> list[int] | None:
        """Tokens, the last an end token, that may follow; None if `states` states, for each of its searches, show none.

        The first way of at most `most` tokens will do; without such a number, short ones are looked for. `old` is a way
        that was valid before: what is left of it counts as soon as it fits again.
        """
        if (left := rejoin(matcher, old)) and (not most or len(left) <= most):
            return left
        found: list[int] | None = None
        for width in (1, _WIDTH):
            for fill in (self.vocabulary.short, self.vocabulary.long):
                if found is None or (not most and len(found) < _LONG):
                    search = _Search(matcher, self, old, fill, width)
                    found = _search(search, states, len(found) if found else most + 1 if most else 0) or found
        if found is None:
            search = _Search(matcher, self, old, self.vocabulary.short, _WIDTH, thorough=True)
            found = _search(search, states // 2, most + 1 if most else 0)
        return found

    def any(self, matcher: LLMatcher, old: list[int], most: int) -> list[int] | None:
        """The same without a search, and the longest rest of `old`: wherever nothing is forced, the first thing that
        may follow of some that close or fill. None where that leads nowhere, or to more than `most` tokens.
        """
        matcher, path = matcher.deep_copy(), list[int]()
        for _ in range(_PLACES):
            left = resume(matcher, old) or ([self.vocabulary.end] if matcher.is_accepting() else [])
            if left or len(path) >= most:
                path += left
                return path if len(path) <= most and left else None
            step = matcher.compute_ff_tokens() or self._step(matcher)
            if not step or not matcher.consume_tokens(step):
                return None
            path += step
        return None

    def _step(self, matcher: LLMatcher) -> list[int]:
        """What to go on with where nothing is forced."""
        for example in self.examples:
            if matcher.validate_tokens(example) == len(example):
                return example
        v = self.vocabulary
        steps = v.inside if matcher.validate_tokens(v.text) == len(v.text) else v.outside
        return next(([token] for token in steps if matcher.validate_tokens([token])), [])


def rejoin(matcher: LLMatcher, old: list[int]) -> list[int] | None:
    """The shortest rest of `old` that may follow, if any does."""
    return _rest(matcher, old, range(len(old) - 1, -1, -1))


def resume(matcher: LLMatcher, old: list[int]) -> list[int] | None:
    """The longest."""
    return _rest(matcher, old, range(len(old)))


def _rest(matcher: LLMatcher, old: list[int], starts: range) -> list[int] | None:
    for start in starts:
        rest = old[start:]
        if matcher.validate_tokens(rest) == len(rest):
            return rest
    return None


def bits_of(mask: bytes, size: int) -> Bits:
    """A mask as one byte per token."""
    return np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[:size]


class _State:
    """A copy of the matcher behind `path`, and what it allows; `cost` counts what did not seem to close anything."""

    __slots__ = ("cost", "mask", "matcher", "path")

    def __init__(self, matcher: LLMatcher, mask: bytes, path: list[int], cost: int) -> None:
        self.matcher, self.mask, self.path, self.cost = matcher, mask, path, cost


class _Search:
    """What a search keeps to: tokens of the order `fill` go on where nothing closes, in `width` states at once."""

    __slots__ = ("fill", "matcher", "most", "old", "ways", "width")

    def __init__(
        self, matcher: LLMatcher, ways: Ways, old: list[int], fill: Any, width: int, thorough: bool = False
    ) -> None:
        self.matcher, self.ways, self.old, self.fill, self.width = matcher, ways, old, fill, width
        self.most = 96 if thorough else 2  # tokens of `fill` that are tried: all single characters, or two


def _search(search: _Search, states: int, below: int) -> list[int] | None:
    """By levels, the cheapest states of each; a way of fewer than `below` tokens (0: any number)."""
    end = search.ways.vocabulary.end
    best: list[int] | None = None
    mask = search.matcher.compute_bitmask()
    if search.matcher.is_error():  # behind one of its bounds masks are of the end tokens, whatever is open
        return None
    level = [_State(search.matcher.deep_copy(), mask, [], 0)]
    while level and states > 0:
        ways, following = [], list[_State]()
        for state in level:
            bits = bits_of(state.mask, search.ways.vocabulary.size)
            if bits[end]:
                ways.append([*state.path, end])
                continue
            children = _children(search, state, bits)
            states -= len(children)
            ways += [c.path + rest for c in children if search.old and (rest := rejoin(c.matcher, search.old))]
            following += children
        if ways and (not below or len(min(ways, key=len)) < below):
            best = min(ways, key=len)
            below = len(best)
        following.sort(key=lambda s: (s.cost, len(s.path)))
        kept = [s for s in following[: search.width] if s.cost < _DEAR]
        level = [s for s in kept if not below or len(s.path) + 1 < below]
    return best


def _children(search: _Search, state: _State, bits: Bits) -> list[_State]:
    """The states behind some of the tokens that may follow: of those that allow the same, the nearest."""
    children: dict[bytes, _State] = {}
    closed = 0  # whether something closes: all else then leads away from the end
    for tokens, (cost, fills) in _candidates(state.matcher, bits, search).items():
        matcher = state.matcher.deep_copy()
        if not matcher.consume_tokens(list(tokens)):
            continue
        forced = matcher.compute_ff_tokens()
        if forced and not matcher.consume_tokens(forced):
            continue
        mask, path = matcher.compute_bitmask(), [*state.path, *tokens, *forced]
        loops = _LOOP if mask == state.mask else 0
        if matcher.is_error() or (loops and not fills):  # as a bracket in a string
            continue
        if mask in children and len(path) >= len(children[mask].path):
            continue
        children[mask] = _State(matcher, mask, path, state.cost + cost + loops + closed)
        closed |= not fills
        if search.width == 1 and not loops:
            break
    return list(children.values())


def _candidates(matcher: LLMatcher, bits: Bits, search: _Search) -> dict[tuple[int, ...], tuple[int, bool]]:
    """Some of the tokens that are allowed, what they cost, and whether they may leave everything as it was: what
    closes, examples, then some of the search's order, then marks."""
    v = search.ways.vocabulary
    found: dict[tuple[int, ...], tuple[int, bool]] = {}
    for order, most, cost in ((v.closing, 2, 0), (v.quoting, 2, 0), (search.fill, search.most, 0), (v.marks, 6, 1)):
        if order is search.fill:
            fit = (e for e in search.ways.examples if bits[e[0]] and matcher.validate_tokens(e) == len(e))
            found |= {tuple(example): (0, False) for example in fit}
        for token in _allowed(bits, order, most):
            found.setdefault((token,), (cost, order is search.fill or order is v.marks))
    return found or {(token,): (1, True) for token in _allowed(bits, v.parts, 2)}


def _allowed(bits: Bits, order: Any, most: int) -> list[int]:
    """The first few allowed tokens of an order."""
    first = order[:_FIRST]
    found = first[bits[first] > 0][:most]
    if len(found) < most and len(order) > _FIRST:
        found = order[bits[order] > 0][:most]
    chosen: list[int] = found.tolist()
    return chosen
