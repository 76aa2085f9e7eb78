"""bind_formats and bind_kv_format: what the model function leaves open, settled by the source and the settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ridgeline.program.ir import Instr, Operand, Program, StateRef, Weight
from ridgeline.program.passes.rewrite import map_entries, map_weights


def bind_formats(program: Program, format_of: Callable[[Weight], str]) -> Program:
    """`format_of(weight)` names the format of each weight that has none; constants keep float32."""

    def bind(w: Weight) -> Weight:
        return w if w.format else replace(w, format=format_of(w))

    return map_weights(program, bind)


def bind_kv_format(program: Program, format: str) -> Program:
    """Keys and values of every group are stored in `format`."""

    def operand(x: Operand) -> Operand:
        return replace(x, state=replace(x.state, format=format)) if isinstance(x, StateRef) else x

    def instr(i: Instr) -> Instr:
        return replace(i, operands={k: operand(x) for k, x in i.operands.items()})

    return map_entries(program, lambda e: replace(e, instrs=tuple(map(instr, e.instrs))))
