"""What the scheduler decided, and why: the last some thousand decisions, told in words on demand."""

from __future__ import annotations

from collections import deque

_KEPT = 4096

# What happened to a sequence, with its numbers.
WAITS_FOR_A_PLACE = "waits: {0} sequences run, which is the most, and none of them ranks below it"
WAITS_FOR_PAGES = "waits: for its {0} tokens {1} pages are missing that it may have"
WAITS_FOR_GROWTH = "waits: with the {0} sequences that run it may grow to {1} pages; there are {2}"
WAITS_FOR_A_PREFIX = "waits: choice {1} of request {0} is computing the next page that both begin with"
STARTS = "starts: {0} of its {1} tokens were in the prefix cache"
FORKS = "goes on from the prompt that choice {0} has read: shares its pages"
GIVES_WAY = "gives way: choice {1} of request {0} needed pages; {2} tokens are to be computed again, or found cached"
PAUSES = "pauses: no page is left for its next token; {0} tokens are to be computed again, or found cached"
ENDS = "ends ({0}) with {1} tokens"


class Journal:
    """A ring of decisions. Told once: a sequence that waits for the same thing as before adds nothing."""

    def __init__(self) -> None:
        self._events: deque[tuple[int, int, str, tuple[object, ...]]] = deque(maxlen=_KEPT)

    def note(self, order: tuple[int, int], what: str, *numbers: object) -> None:
        """`order` is the sequence's: (request, choice)."""
        self._events.append((*order, what, numbers))

    def why(self, id: int) -> list[str]:
        """What was decided for a request, in order, as far back as is remembered."""
        return [f"choice {c} {what.format(*numbers)}" for at, c, what, numbers in self._events if at == id]
