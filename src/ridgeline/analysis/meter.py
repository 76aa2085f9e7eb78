"""Meter: the load of every step an LLM runs, kept so that the prediction can be set beside the clock afterwards.

A step's cost takes longer to fold than a small model takes to decode a token, so nothing is computed in the loop; what
the loop leaves behind are flat tuples of numbers, which the collector forgets.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ridgeline.engine.engine import Flight
from ridgeline.llm import LLM
from ridgeline.ops.spec import Load
from ridgeline.program.batch import StepResult


class Meter:
    """An observer of commits; `loads` has one entry per step, in order."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, ...]] = []  # rows, then start and count of each chunk

    def __call__(self, flight: Flight, result: StepResult) -> None:
        step = [len(flight.rows)]
        for c in flight.chunks:
            step += (c.start, c.count)
        self._steps.append(tuple(step))

    def __len__(self) -> int:
        """Steps seen."""
        return len(self._steps)

    @property
    def loads(self) -> tuple[Load, ...]:
        return tuple(Load(tuple(zip(s[1::2], s[2::2], strict=True)), s[0]) for s in self._steps)


@contextmanager
def metered(llm: LLM) -> Iterator[Meter]:
    """A meter on `llm` for as long as the block runs."""
    meter = Meter()
    llm.observers.append(meter)
    try:
        yield meter
    finally:
        llm.observers.remove(meter)
