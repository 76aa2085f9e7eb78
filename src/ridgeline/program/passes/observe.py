"""observe: make the rows that linears read results of the program, so that calibration sees them on any backend."""

from __future__ import annotations

from dataclasses import replace

from ridgeline.program.ir import Program, View, Weight

Readers = tuple[tuple[str, ...], ...]  # names of the stored matrices that read each extra result


def observe(program: Program) -> tuple[Program, Readers]:
    """The program with the rows that forward's linears read as further results, and who reads them. Comes last."""
    readers: dict[View, list[str]] = {}
    for instr in program.forward.instrs:
        w, x = instr.operands.get("w"), instr.operands.get("x")
        if instr.op == "linear" and isinstance(w, Weight) and isinstance(x, View):
            readers.setdefault(x, []).extend(w.parts)
    forward = replace(program.forward, results=(*program.forward.results, *readers))
    return replace(program, forward=forward), tuple(map(tuple, readers.values()))
