"""How long answers get, learned from those that ended, and how many pages those in progress will come to hold.

What starts should fit while it grows, not only now: or much of it must give way, and be computed again. The forecast is
that of the Past-Future scheduler (Gong et al., ASPLOS 2025). It knows sequences, not the pool or the policy.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterable

from ridgeline.engine.records import PAGE
from ridgeline.engine.sequence import Sequence

_KEPT = 256  # answers that are remembered
_ENOUGH = 8  # answers that say something about the next ones
_SPREAD = 0.618033988749895  # multiples of the golden ratio lie evenly between 0 and 1, however many there are


class Lengths:
    """The lengths in tokens of the last answers."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque()
        self._sorted: list[int] = []

    def observe(self, tokens: int) -> None:
        """An answer ended with so many tokens."""
        self._recent.append(tokens)
        bisect.insort(self._sorted, tokens)
        if len(self._recent) > _KEPT:
            self._sorted.remove(self._recent.popleft())

    def left(self, s: Sequence) -> int:
        """Tokens that `s` will still get if it becomes as long as one of those that were longer than it is.

        Each sequence stands for another one of them, so that together they are spread as those were. One that is longer
        than all is expected to double.
        """
        made = len(s.tokens) - s.prompt_len
        at = bisect.bisect_right(self._sorted, made)
        longer = len(self._sorted) - at
        place = (s.id + s.choice) * _SPREAD % 1
        expected = self._sorted[at + int(place * longer)] if longer else 2 * made
        return min(expected, s.limit - s.prompt_len) - made

    def peak(self, sequences: Iterable[Sequence]) -> int:
        """Most pages of their own that all will hold at once, a token a step each; 0 while too few have ended."""
        if len(self._sorted) < _ENOUGH:
            return 0
        ends = sorted(((self.left(s), *s.needs) for s in sequences), reverse=True)
        most = pages = rate = 0
        for left, held, growing in ends:  # just before this one ends, those that end later have grown as much
            pages, rate = pages + held, rate + growing
            most = max(most, pages + rate * -(-left // PAGE))
        return most
