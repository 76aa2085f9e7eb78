"""Gives every single-word damage of a real record to the native loop, and runs what it accepts; a script, for a crash
must end a process of its own. Prints the place and value of each damage before it is tried, then a summary.
"""

from __future__ import annotations

import sys

import numpy as np
from rig import LIMITS, PAGES, batch_of, program, prompt, reader, tables

from ridgeline.backends.cpu import _native
from ridgeline.backends.cpu.backend import CPU, join, kv_bytes
from ridgeline.backends.cpu.panels import Panels
from ridgeline.backends.cpu.record import Extents, encode
from ridgeline.program.batch import Batch, BatchLayout
from ridgeline.program.memory import plan_memory

BY = (-1, 0, 1, 3, 64, 2**31 - 1, 2**62, -(2**63))


class Rig:
    """The tiny model's record with its weights, and memory of just the size it needs."""

    def __init__(self, weight_format: str, kv_format: str, int8: bool) -> None:
        p = program(weight_format, kv_format, int8, windows=(0, 70))
        self.layout = BatchLayout.of(LIMITS, p.states)
        entry = join(p)
        plan = plan_memory(entry, LIMITS)
        capacity = {axis: LIMITS.capacity(axis) for axis in "TRLCEHM"}
        held = (LIMITS.held, LIMITS.hidden)
        extents = Extents(self.layout.slots, self.layout.nbytes, capacity, self.layout.groups, PAGES, held)
        record = encode(entry, plan, extents, entry.results[0].buffer)
        self.cpu, self.words, read = CPU(2), record.words, reader(weight_format)
        self.weights, self.vectors = Panels(self.cpu.pool, CPU.held_as).load(record.weights, record.vectors, read, None)
        self.kv, self.arena = _native.Memory(kv_bytes(p, PAGES)), _native.Memory(plan.nbytes)

    def run(self, words: np.ndarray, batch: Batch) -> None:
        """Raises ValueError or MemoryError for a record or batch that is refused."""
        parts = self.weights, self.vectors, self.kv, self.arena
        _native.Step(self.cpu.pool, self.cpu.isa, words, *parts).run(batch.buffer)


def batch(layout: BatchLayout) -> Batch:
    """A chunk and a decode row; copies, a kept row, a bias, history and a mask."""
    b = batch_of(layout, [(0, prompt(5), 0), (1, [7], 70)])
    b.resize(C=1, E=2, H=2, M=1)
    b["copies"][:] = [(0, tables()[0][0] * 64, tables()[2][0] * 64, 5)]
    b["want"][1] |= 16
    b["hold_slot"][1] = 3
    s = b["sampler"]
    s["bias_stop"][0], s["history_stop"][1], s["mask_row"][2], s["temperature"][3] = 2, 2, 0, 1
    return b


def main() -> None:
    accepted = refused = 0
    for formats in (("q4_1", "bf16", True), ("f32", "f32", False)):
        rig = Rig(*formats)
        given = batch(rig.layout)
        rig.run(rig.words, given)  # nothing is wrong with it undamaged
        for at, word in enumerate(rig.words.tolist()):
            for value in {*BY, word + 1, word - 1} - {word}:
                print(at, value, flush=True)
                damaged = rig.words.copy()
                damaged[at] = max(value, -(2**63))
                try:
                    rig.run(damaged, given)
                    accepted += 1
                except (ValueError, MemoryError):
                    refused += 1
    print(f"{accepted} accepted, {refused} refused")


if __name__ == "__main__":
    sys.exit(main())
