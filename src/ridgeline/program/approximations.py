"""What a program rounds beyond the model as stored: in words, and as a key under which its measured loss is kept.

The key is the same on every backend that rounds alike, whatever it holds weights in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from ridgeline.ops.spec import INT8_GROUPS, TWO_TERMS
from ridgeline.program.ir import Instr, Program, View, Weight
from ridgeline.program.passes.repack import rounded


def approximations(program: Program) -> tuple[str, ...]:
    """One phrase for each kind of rounding; none where the program is the model as stored, with float32 rows."""
    found = [f"weights rounded again to {name}" for name in rounded(program)]
    if any(w.smooth for w in program.weights.values()):
        found.append("smoothed")
    if any(_thresholds(program).values()):
        found.append("small values of rows cut off")
    rows = row_types(program)
    return tuple([*found, f"activations {rows}"] if rows != "float32" else found)


def row_types(program: Program) -> str:
    """The types of the rows that linears read, in words: "float32", "int8 by row, int8 in groups of 32"."""
    types = dict.fromkeys(x.type.dtype for _, x in _linears(program) if x.type.dtype != "f32")
    return ", ".join(map(_row, types)) or "float32"


def key(program: Program) -> str:
    """16 hex digits over what each linear rounds, and the KV format."""
    lines, cut = [], _thresholds(program)
    for instr, x in _linears(program):
        w = instr.operands["w"]
        assert isinstance(w, Weight)
        repack = w.repack if w.repack in rounded(program) else ""
        lines.append(repr((w.parts, w.rows, w.columns, repack, w.smooth, x.type.dtype, cut.get(x.buffer.id, 0.0))))
    tables = sorted(w.repack for w in program.weights.values() if w.repack)
    states = [(s.name, s.format) for s in program.states]
    return hashlib.sha256(repr((program.name, sorted(lines), tables, states)).encode()).hexdigest()[:16]


def _thresholds(program: Program) -> dict[int, float]:
    """Buffer of quantised rows -> below which value they were cut off."""
    return {i.outputs[0].id: i.attrs.get("threshold", 0.0) for i in program.instrs if i.op == "quantize_act"}


def _linears(program: Program) -> Iterator[tuple[Instr, View]]:
    for instr in program.instrs:
        x = instr.operands.get("x")
        if instr.op == "linear" and isinstance(x, View):
            yield instr, x


def _row(dtype: str) -> str:
    if dtype not in INT8_GROUPS:
        return dtype
    if dtype in TWO_TERMS:
        return f"two int8 terms in groups of {INT8_GROUPS[dtype]}"
    return f"int8 in groups of {INT8_GROUPS[dtype]}" if INT8_GROUPS[dtype] else "int8 by row"
