"""Feeder: keeps a client's queue full from an iterator of work, however much of it there is.

It holds one item beside those that the client accepted; where items come from and where deltas go is its user's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from ridgeline.engine.client import EngineClient
from ridgeline.engine.interrupts import Uninterrupted
from ridgeline.engine.ledger import Sink
from ridgeline.engine.params import SamplingParams
from ridgeline.engine.records import NO_TERMS, Delta, Terms
from ridgeline.errors import Overloaded


class Work(msgspec.Struct, frozen=True):
    """A prompt to continue, and where its deltas go. Sinks must not raise."""

    prompt: Sequence[int]
    params: SamplingParams
    sink: Sink
    terms: Terms = NO_TERMS


class Feeder:
    """Submits `work` in order, as room comes free. Between calls of `fill` its user pumps the client."""

    def __init__(self, client: EngineClient, work: Iterable[Work]) -> None:
        self._client, self._work = client, iter(work)
        self._held: Work | None = None
        self._live: dict[int, int] = {}  # request -> choices that have not ended
        self._choices = 0  # their sum
        self._room = client.info.max_requests + client.info.queue

    def fill(self) -> bool:
        """Submit what there is room for. False once everything has been submitted and has ended.

        Raises what the client refuses with, except Overloaded: then the item waits.
        """
        while True:
            if self._held is None:
                self._held = next(self._work, None)
            if self._held is None:
                return bool(self._live)
            if not self._submit(self._held):
                return True
            self._held = None

    def cancel(self) -> None:
        """Cancel what has not ended; the client's next pumps end it."""
        for id in self._live:
            self._client.cancel(id)

    def _submit(self, work: Work) -> bool:
        n, width = work.params.n, work.params.width
        if self._live and self._choices + width > self._room:  # the client would say so, but at the price of an error
            return False

        def sink(delta: Delta) -> None:
            if delta.finish is not None:
                self._end(delta.id)
            work.sink(delta)

        with Uninterrupted():  # what the client knows is known here
            try:
                id = self._client.submit(work.prompt, work.params, sink, work.terms)
            except Overloaded:  # by requests of others
                return False
            self._live[id] = n
            self._choices += n
        return True

    def _end(self, id: int) -> None:
        self._choices -= 1
        self._live[id] -= 1
        if not self._live[id]:
            del self._live[id]
