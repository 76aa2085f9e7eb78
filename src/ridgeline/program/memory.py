"""The memory plan: an offset for every buffer in one arena, by first fit over live ranges.

Sizes are taken at the capacities of the batch (max T, R, L), once, at compile; nothing is allocated in a step.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection
from dataclasses import dataclass

from ridgeline.ops.spec import row_bytes
from ridgeline.program.batch import Limits
from ridgeline.program.ir import Buffer, Entry, View

ALIGN = 64


@dataclass(frozen=True)
class MemoryPlan:
    """Byte offset of each buffer by id, and the arena's size."""

    offsets: dict[int, int]
    nbytes: int


def buffer_bytes(buffer: Buffer, limits: Limits) -> int:
    """Bytes of a buffer at capacity, padded to a cache line."""
    shape = buffer.type.shape
    rows = limits.capacity(shape[0]) if isinstance(shape[0], str) else shape[0]
    return -(-rows * row_bytes(buffer.type) // ALIGN) * ALIGN


def live_ranges(entry: Entry, linger: Collection[str] = ()) -> dict[int, tuple[int, int]]:
    """Buffer id -> (first, last) instruction index at which it must exist; parameters and results live throughout.

    After its last use a buffer lives on until the next of the ops in `linger`, as if that op read it too.
    """
    end = len(entry.instrs)
    ranges = {b.id: (-1, end) for b in entry.params}
    for i, instr in enumerate(entry.instrs):
        for x in instr.operands.values():
            if isinstance(x, View) and x.buffer.id in ranges:
                first, last = ranges[x.buffer.id]
                ranges[x.buffer.id] = (first, max(last, i))
        for out in instr.outputs:
            ranges[out.id] = (i, i)
    stops = [i for i, instr in enumerate(entry.instrs) if instr.op in linger]
    for id, (first, last) in ranges.items():
        at = bisect_left(stops, last)
        ranges[id] = (first, stops[at] if at < len(stops) else last)
    for result in entry.results:
        ranges[result.buffer.id] = (ranges[result.buffer.id][0], end)
    return ranges


def plan_memory(entry: Entry, limits: Limits, linger: Collection[str] = ()) -> MemoryPlan:
    """Place each buffer at the lowest offset free over its whole live range; `linger` as in `live_ranges`."""
    buffers = {b.id: b for b in (*entry.params, *(b for i in entry.instrs for b in i.outputs))}
    ranges = live_ranges(entry, linger)
    live: list[tuple[int, int, int]] = []  # offset, end, last use; by offset
    offsets: dict[int, int] = {}
    total = 0
    for id in sorted(buffers, key=lambda b: ranges[b]):  # by first use: what has had its last one makes room for good
        size, (first, last) = buffer_bytes(buffers[id], limits), ranges[id]
        live = [place for place in live if place[2] >= first]
        offset = 0
        for start, end, _ in live:
            if end > offset:
                if offset + size <= start:
                    break
                offset = end
        offsets[id] = offset
        insort(live, (offset, offset + size, last))
        total = max(total, offset + size)
    return MemoryPlan(offsets, total)
