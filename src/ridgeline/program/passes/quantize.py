"""quantize_activations: put a quantize_act before each linear, in the type that its weight's format and input ask for.

Approximate (invariant 6): the engine config asks for it, and `ridgeline eval --against-activations float32` prints
what it costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from ridgeline.ops.spec import TensorType
from ridgeline.program.ir import Buffer, Entry, Instr, Program, View, Weight
from ridgeline.program.passes.rewrite import map_entries, next_id

Multiplies = Mapping[str, tuple[str, ...]]  # held format -> types of rows its linears may read, best first

ACTIVATIONS = ("auto", "int8", "int8-row", "bf16", "float32")  # choices of `quantize_activations`


def quantize_activations(program: Program, multiplies: Multiplies, choice: str = "auto") -> Program:
    """Linears read rows of the first type in `multiplies` that `choice` allows; float32 ones where it allows none.

    "auto": all types. "int8": only int8 ones, "bf16": only bf16. Int8 rows with one scale ("i8") are taken where their
    loss is small: into smoothed weights, and from attention beside them; with "int8-row" wherever there is a kernel.
    Rows used by several linears are quantised once for each type.
    """
    fresh = iter(range(next_id(program), 1 << 62))
    return map_entries(program, lambda e: _quantize(e, multiplies, choice, fresh))


def row_type(instr: Instr, multiplies: Multiplies, choice: str, even: bool) -> str:
    """The type of rows a linear reads; `even`: its input has no columns far above the others."""
    w = instr.operands["w"]
    assert isinstance(w, Weight)
    for dtype in multiplies.get(w.format, ()):
        if choice == "float32" or (choice != "auto" and (choice == "bf16") != (dtype == "bf16")):
            continue
        if dtype != "i8" or even or choice == "int8-row":
            return dtype
    return "f32"


def _quantize(entry: Entry, multiplies: Multiplies, choice: str, fresh: Iterator[int]) -> Entry:
    done: dict[tuple[View, str], View] = {}
    instrs: list[Instr] = []
    smoothed = any(isinstance(x, Weight) and x.smooth for i in entry.instrs for x in i.operands.values())
    attended = {b.id for i in entry.instrs if smoothed and i.op == "attention" for b in i.outputs}
    for instr in entry.instrs:
        w, x = instr.operands.get("w"), instr.operands.get("x")
        dtype = "f32"
        if instr.op == "linear" and isinstance(w, Weight) and isinstance(x, View):
            dtype = row_type(instr, multiplies, choice, bool(w.smooth) or x.buffer.id in attended)
        if dtype == "f32" or not isinstance(x, View):
            instrs.append(instr)
            continue
        if (x, dtype) not in done:
            out = Buffer(next(fresh), TensorType(x.type.shape, dtype))
            instrs.append(Instr("quantize_act", {"x": x}, (out,), {"dtype": dtype}, instr.scope, instr.where))
            done[x, dtype] = View(out, 0, x.stop - x.start)
        instrs.append(replace(instr, operands={**instr.operands, "x": done[x, dtype]}))
    return replace(entry, instrs=tuple(instrs))
