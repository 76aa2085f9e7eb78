"""What a fuzz target is, and the meter of what a mutation allocates."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Protocol

from ridgeline.models import build
from ridgeline.weights.load import Checkpoint

MIB = 1 << 20
Check = Callable[[str, int], None]  # (phase, bytes that may have been allocated since the start)


class TooMuch(AssertionError):
    """A phase allocated more than its bound."""


class Target(Protocol):
    """One kind of hostile input. Made in a scratch folder in memory; `run` returns, or raises what the code raised."""

    def __init__(self, scratch: Path) -> None: ...

    def mutate(self, rng: Random) -> Any:
        """A case: a mutation of a seed, the same for the same random stream."""

    def parse(self, data: bytes) -> Any:
        """A case made of plain bytes, for coverage-guided fuzzers."""

    def corpus(self) -> list[bytes]:
        """Bytes that `parse` makes valid cases of."""

    def run(self, case: Any, check: Check) -> None: ...


def declare(checkpoint: Checkpoint) -> None:
    """What loading does before weights are read: the program, and each weight's place, format and shape."""
    program = build(checkpoint.config)
    checkpoint.check_all_used(program.weights.values())
    for weight in program.weights.values():
        if weight.constant is None:
            checkpoint.format_of(weight)


def unchecked(phase: str, bound: int) -> None:
    """The check of a mutation that is not measured."""


class Meter:
    """Traces allocations between `start` and `stop`; its check raises TooMuch. `peak` is the worst of all."""

    def __init__(self) -> None:
        self.peak = 0
        self.phase = ""

    def start(self) -> None:
        tracemalloc.start()

    def stop(self) -> None:
        tracemalloc.stop()

    def check(self, phase: str, bound: int) -> None:
        used = tracemalloc.get_traced_memory()[1]
        if used > self.peak:
            self.peak, self.phase = used, phase
        if used > bound:
            raise TooMuch(f"{phase} allocated {used} bytes; the bound is {bound}")
