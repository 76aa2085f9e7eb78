"""quantize_activations: put a quantize_act before each linear, in the type that its weight's format and input ask for.

Approximate (invariant 6): the engine config asks for it, and `ridgeline eval --against-activations float32` prints
what it costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from ridgeline.ops.spec import TWO_TERMS, TensorType
from ridgeline.program.ir import Buffer, Entry, Instr, Program, View, Weight
from ridgeline.program.passes.rewrite import next_id

Multiplies = Mapping[str, tuple[str, ...]]  # held format -> types of rows its linears may read, best first

ACTIVATIONS = ("auto", "int8", "int8-row", "bf16", "float32")  # choices of `quantize_activations`


def quantize_activations(program: Program, multiplies: Multiplies, choice: str = "auto") -> Program:
    """Linears read rows of the first type in `multiplies` that `choice` allows; float32 ones where it allows none.

    "auto": all types. "int8": only int8 ones, "bf16": only bf16. Int8 rows with one scale ("i8") are taken where their
    loss is small: into smoothed weights, and from attention beside them; with "int8-row" wherever there is a kernel.
    The head and what makes queries, keys and values read rows of two terms in "auto" where there is a kernel: each of
    the two would make about a third of the loss (docs/log.md). Rows used by several linears are quantised once for
    each type.
    """
    fresh = iter(range(next_id(program), 1 << 62))
    return replace(
        program,
        forward=_quantize(program.forward, multiplies, choice, False, fresh),
        sample=_quantize(program.sample, multiplies, choice, True, fresh),
    )


def row_type(able: tuple[str, ...], choice: str, even: bool, sensitive: bool) -> str:
    """The type of rows, among those a backend is `able` to multiply. `even`: no columns stand far above the others;
    `sensitive`: worth two terms."""
    allowed = [dtype for dtype in able if _allowed(dtype, choice, even)]
    if not allowed:
        return "f32"
    finer = f"{allowed[0]}x2"
    return finer if sensitive and choice == "auto" and finer in able else allowed[0]


def _allowed(dtype: str, choice: str, even: bool) -> bool:
    if dtype == "bf16" or choice in ("bf16", "float32"):
        return dtype == "bf16" and choice in ("bf16", "auto")
    return dtype not in TWO_TERMS and (dtype != "i8" or even or choice == "int8-row")


def _quantize(entry: Entry, multiplies: Multiplies, choice: str, head: bool, fresh: Iterator[int]) -> Entry:
    done: dict[tuple[View, str], View] = {}
    instrs: list[Instr] = []
    smoothed = any(isinstance(x, Weight) and x.smooth for i in entry.instrs for x in i.operands.values())
    attended = {b.id for i in entry.instrs if smoothed and i.op == "attention" for b in i.outputs}
    for instr in entry.instrs:
        w, x = instr.operands.get("w"), instr.operands.get("x")
        dtype = "f32"
        if instr.op == "linear" and isinstance(w, Weight) and isinstance(x, View):
            even = bool(w.smooth) or x.buffer.id in attended
            dtype = row_type(multiplies.get(w.format, ()), choice, even, head or "heads" in w.axes[0])
        if dtype == "f32" or not isinstance(x, View):
            instrs.append(instr)
            continue
        if (x, dtype) not in done:
            out = Buffer(next(fresh), TensorType(x.type.shape, dtype))
            instrs.append(Instr("quantize_act", {"x": x}, (out,), {"dtype": dtype}, instr.scope, instr.where))
            done[x, dtype] = View(out, 0, x.stop - x.start)
        instrs.append(replace(instr, operands={**instr.operands, "x": done[x, dtype]}))
    return replace(entry, instrs=tuple(instrs))
