"""Helpers of passes: replace operands, renumber nothing. A pass builds new instruction lists, never edits one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ridgeline.program.ir import Entry, Instr, Operand, Program, View, Weight


def map_entries(program: Program, change: Callable[[Entry], Entry]) -> Program:
    """The program with `change` applied to each entry."""
    return replace(program, forward=change(program.forward), sample=change(program.sample))


def map_weights(program: Program, change: Callable[[Weight], Weight]) -> Program:
    """The program with each weight replaced by `change(weight)`, at every use: tied weights stay tied."""

    def operand(x: Operand) -> Operand:
        return change(x) if isinstance(x, Weight) else x

    return map_entries(program, lambda e: replace(e, instrs=tuple(map_operands(i, operand) for i in e.instrs)))


def map_operands(instr: Instr, change: Callable[[Operand], Operand]) -> Instr:
    """`instr` with each operand replaced by `change(operand)`: itself where that is the same one for all, so that
    nobody looks at it again."""
    operands = {k: change(x) for k, x in instr.operands.items()}
    same = all(x is operands[k] for k, x in instr.operands.items())
    return instr if same else replace(instr, operands=operands)


def redirect(x: Operand, moved: Mapping[int, View]) -> Operand:
    """Operand `x`, following buffers that now live inside another one."""
    while isinstance(x, View) and x.buffer.id in moved:
        target = moved[x.buffer.id]
        x = View(target.buffer, target.start + x.start, target.start + x.stop)
    return x


def redirected(instr: Instr, moved: Mapping[int, View]) -> Instr:
    """`instr` with all operands redirected."""
    return map_operands(instr, lambda x: redirect(x, moved))


def next_id(program: Program) -> int:
    """An unused buffer id."""
    ids = [b.id for e in program.entries.values() for b in e.params]
    ids += [b.id for i in program.instrs for b in i.outputs]
    return max(ids, default=-1) + 1
