"""smooth: move the scale of outlying columns from the rows a norm gives into the matrices that read them.

SmoothQuant (Xiao et al., 2022): y = W x = (W diag(s)) (x / s). The norm's vectors are divided by s and the matrices'
columns multiplied by it when they are read, so nothing is added to the program; s is calibrated (engine/calibrate.py).
Exact but for the rounding that comes after, which it makes smaller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from ridgeline.errors import ConfigError
from ridgeline.program.ir import Entry, Instr, Operand, Program, View, Weight
from ridgeline.program.passes.rewrite import map_weights

_NORMS = ("rms_norm", "layer_norm")
_ROWS = "int8"  # the format whose linears read rows with one scale


def smooth(program: Program, label: str) -> Program:
    """Name the scale of each norm that only linears over int8 weights read, in its vectors and in their matrices.

    Comes before fusing. Not the norm before the head, whose rows are a result, nor tied weights. `label`, part of each
    name, tells scales of different strengths and texts apart. ConfigError where there is nothing to smooth.
    """
    uses = Counter(x.name for x in program.operands() if isinstance(x, Weight))
    marks = {w.name: name for name, group in _groups(program.forward).items() for w in group}
    spoiled = {marks[name] for name in marks if uses[name] > 1}
    kept = {name: f"{mark}@{label}" for name, mark in marks.items() if mark not in spoiled}
    if not kept:
        raise ConfigError(f"smoothing finds no int8 matrices behind a norm in {program.name}; give --format int8")
    return map_weights(program, lambda w: replace(w, smooth=kept.get(w.name, "")))


def smoothed(program: Program) -> dict[str, list[Weight]]:
    """The weights of each scale, by its name, in order of use."""
    found: dict[str, list[Weight]] = {}
    for w in program.weights.values():
        if w.smooth:
            found.setdefault(w.smooth, []).append(w)
    return found


def _groups(entry: Entry) -> Mapping[str, list[Weight]]:
    """Norm's weight name -> its vectors and the matrices that read its rows."""
    readers: dict[int, list[Instr]] = {}
    for instr in entry.instrs:
        for x in instr.operands.values():
            if isinstance(x, View):
                readers.setdefault(x.buffer.id, []).append(instr)
    given = {r.buffer.id for r in entry.results}
    groups = {}
    for instr in entry.instrs:
        out = instr.outputs[0] if instr.outputs else None
        if instr.op not in _NORMS or instr.attrs.get("width") or out is None or out.id in given:
            continue
        matrices = [_matrix(r.operands.get("w")) if r.op == "linear" else None for r in readers.get(out.id, [])]
        vectors = [w for w in instr.operands.values() if isinstance(w, Weight)]
        if matrices and all(matrices):
            groups[vectors[0].name] = vectors + [m for m in matrices if m is not None]
    return groups


def _matrix(x: Operand) -> Weight | None:
    return x if isinstance(x, Weight) and x.format == _ROWS else None
