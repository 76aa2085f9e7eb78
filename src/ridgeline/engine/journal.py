"""What the scheduler decided, and why: the last some thousand decisions, told in words on demand."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ridgeline.engine.records import Note

_KEPT = 4096

# What happened to a sequence, with its numbers.
WAITS_FOR_A_PLACE = "waits: {0} sequences run, which is the most, and none of them ranks below it"
WAITS_FOR_PAGES = "waits: for its {0} tokens {1} pages are missing that it may have"
WAITS_FOR_GROWTH = "waits: with the {0} sequences that run it may grow to {1} pages; there are {2}"
WAITS_FOR_A_PREFIX = "waits: choice {1} of request {0} is computing the next page that both begin with"
WAITS_ITS_TURN = "waits its turn: {0} sequences wait, and others are before it"
WAITS_FOR_AN_ENGINE = "waits for an engine process that can take it"
STARTS = "starts: {0} of its {1} tokens were in the prefix cache"
FORKS = "goes on from the prompt that choice {0} has read: shares its pages"
GIVES_WAY = "gives way: choice {1} of request {0} needed pages; {2} tokens are to be computed again, or found cached"
PAUSES = "pauses: no page is left for its next token; {0} tokens are to be computed again, or found cached"
PAUSED = "is paused with {0} tokens: its reader is behind; its pages stay until others need them"
RESUMED = "goes on: its reader has caught up"
REPLAYED = "is sent to a new engine process with {0} tokens: the one before is gone"
ENDS = "ends ({0}) with {1} tokens"


class Journal:
    """A ring of decisions. Told once: a sequence that waits for the same thing as before adds nothing."""

    def __init__(self) -> None:
        self._notes: deque[Note] = deque(maxlen=_KEPT)
        self._new: list[Note] = []  # since `take`

    def note(self, order: tuple[int, int], what: str, *numbers: int | str | None) -> None:
        """`order` is the sequence's: (request, choice)."""
        note = Note(*order, what, numbers)
        self._notes.append(note)
        self._new.append(note)

    def take(self) -> tuple[Note, ...]:
        """What is new since this was last asked."""
        new, self._new = self._new, []
        return tuple(new)

    def add(self, notes: Iterable[Note]) -> None:
        """Remember what another journal took down."""
        self._notes.extend(notes)

    def why(self, id: int) -> list[str]:
        """What was decided for a request, in order, as far back as is remembered. From any thread."""
        return [note.text for note in self._notes.copy() if note.id == id]
