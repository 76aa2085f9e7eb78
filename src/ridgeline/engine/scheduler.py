"""The scheduler: which tokens of which sequences the next step computes. First come, first served; no phases."""

from __future__ import annotations

from collections import deque

import msgspec

from ridgeline.engine.pages import PagePool
from ridgeline.engine.sequence import Sequence


class Chunk(msgspec.Struct, frozen=True, gc=False):  # it closes no cycles
    """Positions start..start+count-1 of a sequence, computed in one step.

    `samples`: they reach the last token known or in flight, so that the last row samples the next one.
    """

    sequence: Sequence
    start: int
    count: int
    samples: bool


class Scheduler:
    """Waiting and running sequences, and the rule that shares a step's tokens between them.

    Each running sequence first gets one token, in order of arrival, so that long prompts never stall an answer in
    progress; what is left of the budget then closes the remaining gaps, again in order of arrival. A sequence starts
    only when its worst case can be promised, so nothing that runs can fall short of pages.
    """

    def __init__(self, pool: PagePool, *, step_tokens: int, step_rows: int, max_running: int) -> None:
        self.pool, self.step_tokens, self.step_rows, self.max_running = pool, step_tokens, step_rows, max_running
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self) -> list[Chunk]:
        """Chunks of the next step, with pages taken for them; empty if nothing can run."""
        self._admit()
        ready = [(s, gap) for s in self.running if (gap := s.gap)][: self.step_tokens]
        budget = self.step_tokens - len(ready)
        rows = self.step_rows - len(ready)
        chunks = []
        for s, gap in ready:
            more = min(gap - 1, budget)
            if s.wants_prompt:  # every prompt row wants its logprob, and rows are bounded
                more = min(more, rows)
                rows -= more
            budget -= more
            s.extend(self.pool, s.computed + 1 + more)
            chunks.append(Chunk(s, s.computed, 1 + more, 1 + more == gap))
        return chunks

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.max_running and self.waiting[0].admit(self.pool):
            self.running.append(self.waiting.popleft())

    def remove(self, sequence: Sequence) -> None:
        """Forget an ended sequence and free what it held."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        sequence.release(self.pool)
