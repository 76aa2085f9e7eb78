"""Stop strings over a stream of text.

Owns the decision of which characters may be shown now and which must wait, because they could begin a stop
string. Knows nothing of tokens. One pass over the text, whatever the number of stop strings (Aho-Corasick).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

from ridgeline.errors import InvalidRequest


@dataclass(slots=True)
class _State:
    """One prefix of at least one stop string."""

    depth: int
    edges: dict[str, _State] = field(default_factory=dict)
    fallback: _State | None = None  # the longest proper suffix that is also a prefix; None at the root
    match: str | None = None  # the longest stop string that ends here


@functools.lru_cache(maxsize=64)  # shared by the choices of a request; never changed once built
def _automaton(stops: tuple[str, ...]) -> _State:
    root = _State(0)
    for stop in stops:
        state = root
        for char in stop:
            state = state.edges.setdefault(char, _State(state.depth + 1))
        state.match = stop
    level = [root]
    while level:
        below = []
        for parent in level:
            for char, state in parent.edges.items():
                state.fallback = root if parent is root else _advance(parent.fallback or root, char)
                state.match = state.match or state.fallback.match
                below.append(state)
        level = below
    return root


def _advance(state: _State, char: str) -> _State:
    while char not in state.edges:
        if state.fallback is None:
            return state
        state = state.fallback
    return state.edges[char]


class StopMatcher:
    """Finds the stop string that completes first; of several completing at the same character, the longest.

    `include`: whether the stop string itself is emitted. Raises InvalidRequest for an empty stop string.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        if "" in stops:
            raise InvalidRequest("a stop string is empty; leave it out", param="stop")
        self._state = self._root = _automaton(tuple(stops))
        self._include = include
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str, may_stop: bool = True) -> tuple[str, str | None]:
        """(text safe to show, the stop string just completed or None). After a match no text follows.

        Without `may_stop`, stop strings that `text` completes are passed over, those it begins are not.
        """
        if self.matched is not None:
            return "", None
        pending = self._held + text
        state = self._state
        for position, char in enumerate(text, start=len(self._held) + 1):
            state = _advance(state, char)
            if may_stop and state.match is not None:
                self.matched, self._held = state.match, ""
                return pending[: position if self._include else position - len(state.match)], state.match
        self._state = state
        shown = len(pending) - state.depth
        self._held = pending[shown:]
        return pending[:shown], None

    def flush(self) -> str:
        """The text held back, once it is known that no more comes."""
        held, self._held, self._state = self._held, "", self._root
        return held
