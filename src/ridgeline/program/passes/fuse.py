"""fuse: merge linears that read the same rows (q/k/v, gate/up), and a residual add with the norm that follows it.

Both keep every output bit: a merged linear is the same dot products in one call, its users read column views.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from ridgeline.ops.spec import TensorType
from ridgeline.program.ir import Buffer, Entry, Instr, Program, View, Weight
from ridgeline.program.passes.rewrite import map_entries, next_id, redirect, redirected


def fuse(program: Program) -> Program:
    """Both fusions, in both entries."""
    fresh = iter(range(next_id(program), 1 << 62))
    program = map_entries(program, lambda e: _merge_linears(e, fresh))
    return map_entries(program, _merge_add_norm)


def _mergeable(instr: Instr) -> tuple[object, ...] | None:
    """Linears with equal keys may be merged: same rows, read alike in the same format, same K, biased or not."""
    w, bias = instr.operands.get("w"), instr.operands.get("bias")
    if instr.op != "linear" or not isinstance(w, Weight) or len(w.parts) == 0:
        return None
    read_as = w.format, w.shape[1], w.columns, w.repack, w.smooth
    return instr.operands["x"], read_as, isinstance(bias, Weight), instr.scope


def _merge_linears(entry: Entry, fresh: Iterator[int]) -> Entry:
    groups: dict[tuple[object, ...], list[Instr]] = defaultdict(list)
    for instr in entry.instrs:
        key = _mergeable(instr)
        if key is not None:
            groups[key].append(instr)
    moved: dict[int, View] = {}
    instrs = []
    for instr in entry.instrs:
        key = _mergeable(instr)
        members = groups[key] if key is not None else []
        if len(members) < 2:
            instrs.append(redirected(instr, moved))
        elif instr is members[0]:
            instrs.append(redirected(_merged(members, next(fresh), moved), moved))
    results = tuple(r for r in (redirect(r, moved) for r in entry.results) if isinstance(r, View))
    return replace(entry, instrs=tuple(instrs), results=results)


def _merged(members: list[Instr], id: int, moved: dict[int, View]) -> Instr:
    """One linear for all members; `moved` learns where each member's output now lies."""
    total = sum(m.outputs[0].type.columns for m in members)
    out = Buffer(id, TensorType((members[0].outputs[0].type.shape[0], total)))
    start = 0
    for m in members:
        stop = start + m.outputs[0].type.columns
        moved[m.outputs[0].id] = View(out, start, stop)
        start = stop
    operands = dict(members[0].operands)
    for name in ("w", "bias"):
        weights = [w for w in (m.operands[name] for m in members) if isinstance(w, Weight)]
        if weights:
            operands[name] = concatenate(weights)
    return replace(members[0], operands=operands, outputs=(out,))


def concatenate(weights: list[Weight]) -> Weight:
    """Weights stacked along their first axis."""
    first = weights[0]
    axes = dict.fromkeys(w.axes[0] for w in weights)
    return replace(
        first,
        name="+".join(w.name for w in weights),
        shape=(sum(w.shape[0] for w in weights), *first.shape[1:]),
        axes=("+".join(axes), *first.axes[1:]),
        parts=tuple(p for w in weights for p in w.parts),
        rows=tuple(r for w in weights for r in w.rows),
    )


def _whole(buffer: Buffer) -> View:
    return View(buffer, 0, buffer.type.columns)


def _merge_add_norm(entry: Entry) -> Entry:
    """add followed at once by the rms_norm of its result becomes add_rms_norm."""
    instrs: list[Instr] = []
    for instr in entry.instrs:
        last = instrs[-1] if instrs else None
        x = instr.operands.get("x")
        follows = last is not None and last.op == "add" and isinstance(x, View) and x == _whole(last.outputs[0])
        if last is not None and follows and instr.op == "rms_norm" and not instr.attrs.get("width"):
            operands = {**last.operands, "w": instr.operands["w"]}
            outputs = (*last.outputs, *instr.outputs)
            instrs[-1] = replace(
                instr, op="add_rms_norm", operands=operands, outputs=outputs, attrs={"eps": instr.attrs["eps"]}
            )
        else:
            instrs.append(instr)
    return replace(entry, instrs=tuple(instrs))
