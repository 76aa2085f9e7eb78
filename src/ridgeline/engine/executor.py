"""Executors run batches. One protocol: submit a batch, get a ticket; collect the ticket's result, in order."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import numpy as np

from ridgeline.backends.base import PageBytes, Paged, Step
from ridgeline.ops.spec import Array
from ridgeline.program.batch import Batch, StepResult


class Executor(Protocol):
    """`depth` batches may be in flight. A batch's buffer is free for reuse once its ticket is collected."""

    depth: int

    @property
    def pages(self) -> PageBytes | None:
        """The KV pool as bytes, while nothing is in flight; None where it cannot be had so."""

    def submit(self, batch: Batch) -> int: ...

    def collect(self, ticket: int) -> StepResult: ...


class LocalExecutor:
    """Runs each batch at once in the calling thread; tokens "sampled by step s, row r" are filled in from memory."""

    def __init__(self, step: Step, depth: int = 1) -> None:
        self.step, self.depth = step, depth
        self._results: deque[StepResult] = deque()
        self._ids: dict[int, Array] = {}

    @property
    def pages(self) -> PageBytes | None:
        return self.step.pages if isinstance(self.step, Paged) else None

    def submit(self, batch: Batch) -> int:
        if self.depth > 1:  # else every token was committed before it was scheduled
            self._fill_sources(batch)
        result = self.step.run(batch)
        if self.depth > 1:
            self._ids[result.step] = result.ids
            self._ids.pop(result.step - self.depth - 1, None)
        self._results.append(result)
        return result.step

    def _fill_sources(self, batch: Batch) -> None:
        source = batch["source_step"]
        for t in np.flatnonzero(source >= 0):
            # A dead end samples -1; its sequence ends at the commit, and this late row is never published.
            batch["ids"][t] = max(self._ids[int(source[t])][batch["source_row"][t]], 0)

    def collect(self, ticket: int) -> StepResult:
        result = self._results.popleft()
        assert result.step == ticket, "tickets are collected in the order of submission"
        return result
