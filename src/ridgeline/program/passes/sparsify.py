"""sparsify: values of rows below a calibrated threshold become 0, so that a kernel may skip the weights they meet.

TEAL (Liu et al., 2024). The threshold is part of the row's meaning at every batch size; only the skipping is a
kernel's own affair. Approximate (invariant 6): opt-in, and `ridgeline eval` prints what it costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from ridgeline.ops.spec import TensorType
from ridgeline.program.ir import Buffer, Entry, Instr, Program, View, Weight
from ridgeline.program.passes.rewrite import next_id


def sparsify(program: Program, thresholds: Mapping[str, float]) -> Program:
    """Rows of forward's linears are cut off at `thresholds`, by the name of a stored matrix that reads them.

    Comes last: where rows are quantised already the threshold is that step's, else a step is put in.
    """
    forward = program.forward
    cut: dict[View, float] = {}
    for instr in forward.instrs:
        w, x = instr.operands.get("w"), instr.operands.get("x")
        if instr.op == "linear" and isinstance(w, Weight) and isinstance(x, View) and w.parts[0] in thresholds:
            cut[x] = thresholds[w.parts[0]]
    fresh = iter(range(next_id(program), 1 << 62))
    return replace(program, forward=_cut(forward, cut, fresh))


def _cut(entry: Entry, cut: Mapping[View, float], fresh: Iterator[int]) -> Entry:
    quantised = {i.outputs[0].id for i in entry.instrs if i.op == "quantize_act"}
    by_buffer = {x.buffer.id: t for x, t in cut.items()}
    made: dict[View, View] = {}
    instrs: list[Instr] = []
    for instr in entry.instrs:
        x = instr.operands.get("x")
        if instr.op == "quantize_act" and instr.outputs[0].id in by_buffer:
            instrs.append(replace(instr, attrs={**instr.attrs, "threshold": by_buffer[instr.outputs[0].id]}))
        elif instr.op != "linear" or not isinstance(x, View) or x not in cut or x.buffer.id in quantised:
            instrs.append(instr)
        else:
            if x not in made:
                out = Buffer(next(fresh), TensorType(x.type.shape))
                attrs = {"dtype": "f32", "threshold": cut[x]}
                instrs.append(Instr("quantize_act", {"x": x}, (out,), attrs, instr.scope, instr.where))
                made[x] = View(out, 0, x.stop - x.start)
            instrs.append(replace(instr, operands={**instr.operands, "x": made[x]}))
    return replace(entry, instrs=tuple(instrs))
