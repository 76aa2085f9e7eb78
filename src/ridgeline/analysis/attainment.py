"""Attainment of a running engine: the part of the roofline that its last steps reached.

The cost of a step takes longer to fold than a small model takes to decode a token, so a step is looked at only now and
then, and never chosen for what it does. Peaks that were never measured say nothing, so nothing is said then.
"""

from __future__ import annotations

from collections import deque

from ridgeline.analysis import hardware
from ridgeline.analysis.roofline import Roofline
from ridgeline.config import CacheConfig
from ridgeline.engine.engine import Engine, Flight
from ridgeline.engine.load import Loaded, Observe
from ridgeline.ops.spec import Load
from ridgeline.program.batch import StepResult

_EVERY_S = 0.25  # at least, between two steps that are looked at
_SHARE = 200  # and at least so many times what looking takes
_KEPT = 64  # steps


class Attainment:
    """An observer of an engine's commits. Keeps the engine's counter: predicted over measured seconds of the last steps
    that were looked at, from their submission until their tokens were committed."""

    def __init__(self, roofline: Roofline, engine: Engine) -> None:
        self._roofline, self._engine = roofline, engine
        self._steps: deque[tuple[float, float]] = deque(maxlen=_KEPT)  # predicted and measured
        self._next = 0.0

    def __call__(self, flight: Flight, result: StepResult) -> None:
        if flight.begin < self._next:  # its beginning, or long steps would be looked at more often
            return
        now = self._engine.clock()
        load = Load(tuple((c.start, c.count) for c in flight.chunks), len(flight.rows))
        self._steps.append((self._roofline.seconds(load), now - flight.begin))
        predicted, measured = map(sum, zip(*self._steps, strict=True))
        self._engine.scheduler.counters.attainment = predicted / max(measured, 1e-9)
        looked = self._engine.clock()
        self._next = looked + max(_EVERY_S, _SHARE * (looked - now))


def watch(loaded: Loaded) -> Observe | None:
    """An observer for an engine on the processor, where its peaks were measured."""
    peaks = hardware.peaks(loaded.engine.info.threads, CacheConfig.from_env().path)
    if peaks.source == "assumed" or loaded.opened.backend.name != "cpu":
        return None
    return Attainment(Roofline(loaded.opened.program, peaks), loaded.engine)
