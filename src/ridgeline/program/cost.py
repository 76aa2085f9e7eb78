"""The cost fold: FLOPs and bytes of a program for a step's load, by the cost rule of each op.

It reads the final program, so it counts what runs: fused, quantised, sharded as it is. Weight bytes are those of
the format in which the weight is stored or, once that is known, held by the backend.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ridgeline.ops.spec import OPS, Call, Cost, Load
from ridgeline.program.ir import Instr, Program, Weight
from ridgeline.program.verify import operand_type
from ridgeline.quant.format import FORMATS, HELD_BLOCKS, held_row_bytes


@dataclass(frozen=True)
class InstrCost:
    """An instruction and its cost in one step."""

    instr: Instr
    cost: Cost


def weight_nbytes(w: Weight) -> int:
    """Bytes of a weight as stored or, after that pass, as held. A format must be bound (passes/formats.py)."""
    assert w.format in FORMATS or w.format in HELD_BLOCKS, f"{w.name}: format {w.format!r} is not bound"
    rows = 1 if len(w.shape) == 1 else w.shape[0]
    return rows * held_row_bytes(w.format, w.shape[-1])


def instr_cost(instr: Instr, load: Load) -> Cost:
    """Cost of one instruction."""
    sizes = {name: float(weight_nbytes(x)) for name, x in instr.operands.items() if isinstance(x, Weight)}
    ins = {name: operand_type(x) for name, x in instr.operands.items()}
    if not load.size(instr.outputs[0].type.shape[0]):
        return Cost()  # no rows: nothing is read
    call = Call(ins, tuple(b.type for b in instr.outputs), instr.attrs, sizes)
    return OPS[instr.op].cost(call, load)


def costs(instrs: Iterable[Instr], load: Load) -> list[InstrCost]:
    """Cost of each instruction, in order."""
    return [InstrCost(i, instr_cost(i, load)) for i in instrs]


def total(program: Program, load: Load) -> Cost:
    """Cost of one step: forward, and sample where rows are wanted."""
    instrs = program.instrs if load.rows else program.forward.instrs
    return sum((c.cost for c in costs(instrs, load)), Cost())


def parameters(program: Program) -> int:
    """Number of loaded parameters; a tied weight counts once, constants not at all."""
    count = 0
    for w in program.weights.values():
        if w.constant is None:
            count += w.shape[0] * (w.shape[1] if len(w.shape) > 1 else 1)
    return count


def weight_bytes(program: Program) -> int:
    """Bytes of all weights as stored; a tied weight counts once."""
    return sum(weight_nbytes(w) for w in program.weights.values())


def kv_token_bytes(program: Program) -> float:
    """Bytes of KV that one token adds, all groups and layers."""
    return sum(s.layers * s.layer_token_bytes for s in program.states if s.kind == "kv")
