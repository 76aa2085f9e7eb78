"""quantize_activations: put a quantize_act before each linear whose weight format multiplies int8 rows.

Approximate (invariant 6): the engine config asks for it, and `ridgeline eval --against` prints what it costs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from ridgeline.ops.spec import TensorType
from ridgeline.program.ir import Buffer, Entry, Instr, Program, View, Weight
from ridgeline.program.passes.rewrite import map_entries, next_id


def quantize_activations(program: Program, formats: Collection[str]) -> Program:
    """Linears over weights in one of `formats` read i8g32 rows; rows used by several are quantised once."""
    fresh = iter(range(next_id(program), 1 << 62))
    return map_entries(program, lambda e: _quantize(e, formats, fresh))


def _quantize(entry: Entry, formats: Collection[str], fresh: Iterator[int]) -> Entry:
    done: dict[View, View] = {}
    instrs: list[Instr] = []
    for instr in entry.instrs:
        w, x = instr.operands.get("w"), instr.operands.get("x")
        if instr.op != "linear" or not isinstance(w, Weight) or not isinstance(x, View) or w.format not in formats:
            instrs.append(instr)
            continue
        if x not in done:
            out = Buffer(next(fresh), TensorType(x.type.shape, "i8g32"))
            instrs.append(Instr("quantize_act", {"x": x}, (out,), {}, instr.scope, instr.where))
            done[x] = View(out, 0, x.stop - x.start)
        instrs.append(replace(instr, operands={**instr.operands, "x": done[x]}))
    return replace(entry, instrs=tuple(instrs))
