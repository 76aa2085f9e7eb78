"""Meter: the load of every step an LLM runs, kept so that the prediction can be set beside the clock afterwards.

A step's cost takes longer to fold than a small model takes to decode a token, so nothing is computed in the loop.
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
        self.loads: list[Load] = []

    def __call__(self, flight: Flight, result: StepResult) -> None:
        self.loads.append(Load(tuple((c.start, c.count) for c in flight.chunks), len(flight.rows)))


@contextmanager
def metered(llm: LLM) -> Iterator[Meter]:
    """A meter on `llm` for as long as the block runs."""
    meter = Meter()
    llm.observers.append(meter)
    try:
        yield meter
    finally:
        llm.observers.remove(meter)
