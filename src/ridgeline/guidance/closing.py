"""The way to an answer's end: tokens after which a grammar may stop.

A short one is found by a bounded search, any one by much less. Both follow from a matcher's state and what is passed,
bounded by states looked at and never by time, so that a replay finds the same. They work on copies; the matcher they
are given does not move.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
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
_FITTED = 4096  # tokens of a way's rests that are looked at for one that fits: some 5 ms
_NEAR = 8  # tokens of one that are looked at first
_NEXT = (3, 2, 1)  # where rests begin in whose first tokens' place others are
_PLACES = 48  # where a way is gone on with that need not be short


class Ways:
    """Finds ways for one grammar. `examples` are tokens that some part of it may ask for, as texts of its patterns.

    `spent` is set where one of the matcher's bounds was met.
    """

    def __init__(self, vocabulary: Vocabulary, examples: list[list[int]]) -> None:
        self.vocabulary, self.examples = vocabulary, examples
        self.spent = False

    def shortest(self, matcher: LLMatcher, known: list[int] | None, states: int) -> list[int] | None:
        """Tokens, the last an end token, that may follow: few, or the `known` ones; None if there are none and `states`
        states, for each of its searches, show none.
        """
        found: list[int] | None = None
        for width in (1, _WIDTH):
            for fill in (self.vocabulary.short, self.vocabulary.long):
                if found is None or len(found) < _LONG:
                    search = _Search(self, [], fill, width, states)
                    found = search.way(matcher, len(found or known or ())) or found
        if found is None and known is None:
            found = _Search(self, [], self.vocabulary.short, _WIDTH, states // 2, thorough=True).way(matcher, 0)
        return found or known

    def within(self, matcher: LLMatcher, old: list[int], states: int, most: int) -> list[int] | None:
        """A way of at most `most` tokens; None if `states` states show none. `old` is a way that was valid before: what
        is left of it counts as soon as it fits again.
        """
        v = self.vocabulary
        for width, fill in ((1, v.short), (1, v.long), (_WIDTH, v.short)):
            search = _Search(self, old, fill, width, states)
            if found := search.way(matcher, most + 1):
                return found
            states = search.states
        return None

    def straight(self, matcher: LLMatcher, old: list[int], most: int) -> list[int] | None:
        """A way of at most `most` tokens, found without a search: goes on with what is forced and, wherever nothing is,
        with the first of some tokens that close or fill and may follow, until an end token may or a rest of `old`, a
        way that was valid before, of which it takes the longest for which there is room. None where that leads nowhere,
        or to more tokens.
        """
        matcher, path = matcher.deep_copy(), list[int]()
        for _ in range(_PLACES):
            room = max(0, most - len(path))
            left = resume(matcher, old[max(0, len(old) - room) :])
            left = left or ([self.vocabulary.end] if matcher.is_accepting() else [])
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
    """The shortest rest of `old` that may follow, if any is found quickly, or one that leaves out a few tokens."""
    return _rest(matcher, old, range(len(old) - 1, -1, -1), _FITTED) or _rest(matcher, old, _NEXT, 4 * len(old))


def resume(matcher: LLMatcher, old: list[int]) -> list[int] | None:
    """The longest."""
    return _rest(matcher, old, range(len(old)), _FITTED)


def _rest(matcher: LLMatcher, old: list[int], starts: Iterable[int], most: int) -> list[int] | None:
    """The first of these rests that fits, of as many as have some `most` tokens: few are looked at as a whole, for most
    fail near their begin."""
    for start in starts:
        for rest in (old[start : start + _NEAR], old[start:]):
            fits = matcher.validate_tokens(rest)
            most -= fits + _NEAR
            if not rest or fits < len(rest):
                break
        else:
            return rest
        if most < 0:
            break
    return None


def bits_of(mask: bytes, size: int) -> Bits:
    """A mask as one byte per token."""
    return np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[:size]


class _State:
    """A state behind `path`, made of its `origin` when somebody looks at it: the matcher there, and what it allows.

    `cost` counts what did not seem to close anything. One that `fills` may allow just what its origin does.
    """

    __slots__ = ("cost", "fills", "mask", "matcher", "origin", "path", "step")

    def __init__(self, origin: _State | None, step: list[int], cost: int, fills: bool) -> None:
        self.origin, self.step, self.cost, self.fills = origin, step, cost, fills
        self.path: list[int] = [*origin.path, *step] if origin else []
        self.matcher: LLMatcher | None = None
        self.mask: bytes | None = None

    def look(self) -> bytes:
        """The mask; nothing where nothing follows, and behind one of the matcher's bounds, where masks are of the end
        tokens. What is forced is part of the path then."""
        if self.matcher is None:
            assert self.origin is not None and self.origin.matcher is not None
            self.matcher = self.origin.matcher.deep_copy()
            if self.matcher.consume_tokens(self.step) and (forced := self.matcher.compute_ff_tokens()):
                self.matcher.consume_tokens(forced)
                self.path += forced
        mask = self.matcher.compute_bitmask()
        self.mask = b"" if self.matcher.is_error() else mask
        return self.mask

    def follows(self, tokens: list[int]) -> bool:
        """Whether tokens may, behind a state that was looked at."""
        return self.matcher is not None and self.matcher.validate_tokens(tokens) == len(tokens)


class _Search:
    """A search by levels, which goes on from the `width` cheapest states of each.

    Tokens of the order `fill` go on where nothing closes. With `old`, a way that was valid before, the first way that
    is found will do.
    """

    __slots__ = ("fill", "most", "old", "rests", "states", "ways", "width")

    def __init__(self, ways: Ways, old: list[int], fill: Any, width: int, states: int, thorough: bool = False) -> None:
        self.ways, self.old, self.fill, self.width = ways, old, fill, width
        self.rests = np.array(old, np.int64)[::-1]
        self.most = 96 if thorough else 2  # tokens of `fill` that are tried: all single characters, or two
        self.states = states  # that may still be looked at

    def way(self, matcher: LLMatcher, below: int) -> list[int] | None:
        """One of fewer than `below` tokens (0: any number)."""
        best: list[int] | None = None
        root = _State(None, [], 0, False)
        root.matcher = matcher
        level = [root]
        while level and self.states > 0:
            following = list[_State]()
            for state in level:
                state.origin = None  # or all states on the way here would be kept, and each is as large as it is long
                if not (mask := self.look(state)):
                    continue
                bits = bits_of(mask, self.ways.vocabulary.size)
                left = self.left(state, bits)
                if left and (not below or len(state.path) + len(left) < below):
                    best = [*state.path, *left]
                    below = len(best)
                    if self.old:
                        return best
                if len(left) != 1:
                    following += _children(self, state, bits)
            level = _nearest(self, following, below)
        return best

    def look(self, state: _State) -> bytes:
        """A state's mask; it counts as looked at."""
        if state.mask is None:
            self.states -= 1
            return state.look()
        return state.mask

    def left(self, state: _State, bits: Bits) -> list[int]:
        """What ends it: an end token, or the shortest rest of the old way; nothing if neither does."""
        end = self.ways.vocabulary.end
        if bits[end]:
            return [end]
        if state.matcher is None or not self.old:
            return []
        starts = (len(self.old) - 1 - at for at in np.flatnonzero(bits[self.rests]).tolist())
        return _rest(state.matcher, self.old, starts, _FITTED) or []


def _nearest(search: _Search, following: list[_State], below: int) -> list[_State]:
    """The cheapest states, and the shorter of these, of those that may be on a way of fewer than `below` tokens. Of
    those that come from one state and allow the same, one is enough.

    What a state allows is dear where it is new, and is asked of no more of them than it takes.
    """

    def place(at: int) -> tuple[int, int, int]:
        return following[at].cost, len(following[at].path) * (search.width > 1), at

    queue = [place(at) for at in range(len(following))]
    heapify(queue)
    found = dict[tuple[_State | None, bytes], _State]()
    while queue and len(found) < search.width and search.states > 0 and queue[0][0] < _DEAR:
        popped = heappop(queue)
        state = following[popped[2]]
        if below and len(state.path) + 1 >= below:
            continue
        fresh, mask = state.mask is None, search.look(state)
        same = state.origin is not None and mask == state.origin.mask
        if not mask or (same and not state.fills):  # as a bracket in a string
            continue
        state.cost += _LOOP * (fresh and same)
        if place(popped[2]) > popped:
            heappush(queue, place(popped[2]))
        elif (key := (state.origin, mask)) not in found or len(state.path) < len(found[key].path):
            found[key] = state
    return list(found.values())


def _children(search: _Search, state: _State, bits: Bits) -> list[_State]:
    """The states behind some of the tokens that may follow."""
    children = list[_State]()
    closed = 0  # whether something closes: all else then leads away from the end
    for tokens, (cost, fills) in _candidates(state, bits, search).items():
        child = _State(state, list(tokens), state.cost + cost + closed, fills)
        if not fills and not closed:
            closed = search.look(child) not in (state.mask, b"")
        children.append(child)
    return children


def _candidates(state: _State, bits: Bits, search: _Search) -> dict[tuple[int, ...], tuple[int, bool]]:
    """Some of the tokens that are allowed, what they cost, and whether they may leave everything as it was: what
    closes, examples, then some of the search's order, then marks."""
    v = search.ways.vocabulary
    found: dict[tuple[int, ...], tuple[int, bool]] = {}
    for order, most, cost in ((v.closing, 2, 0), (v.quoting, 2, 0), (search.fill, search.most, 0), (v.marks, 6, 1)):
        if order is search.fill:
            fit = (e for e in search.ways.examples if bits[e[0]] and state.follows(e))
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
