"""A program as a readable table, and its hash: two programs with one dump compute the same thing."""

from __future__ import annotations

import hashlib

from ridgeline.program.ir import CommRef, Field, Instr, Operand, Program, StateRef, View, Weight


def show(x: Operand) -> str:
    """One operand in words: %3, %3[0:576], ids, layers.0.attn.q:q4_1, kv.0."""
    match x:
        case None:
            return "-"
        case View(buffer, start, stop):
            whole = len(buffer.type.shape) == 1 or (start, stop) == (0, buffer.type.columns)
            return f"%{buffer.id}" if whole else f"%{buffer.id}[{start}:{stop}]"
        case Field(name):
            return name
        case Weight():
            return f"{x.name}:{x.format or '?'}"
        case StateRef(state, layer):
            return f"{state.name}.{layer}"
        case CommRef(axis):
            return f"comm.{axis}"


def line(instr: Instr) -> str:
    """One instruction as text, without its place in the source."""
    outs = ", ".join(
        f"%{b.id} {list(b.type.shape)}{'' if b.type.dtype == 'f32' else b.type.dtype}" for b in instr.outputs
    )
    ins = ", ".join(show(x) for x in instr.operands.values())
    attrs = "".join(f" {k}={v}" for k, v in instr.attrs.items())
    return f"{outs} = {instr.op}({ins}){attrs}"


def dump(program: Program) -> str:
    """All instructions by entry and scope, with the model's file:line at the right."""
    rows = []
    for name, entry in program.entries.items():
        rows.append(f"{name}({', '.join(f'%{b.id}' for b in entry.params)})")
        for i, instr in enumerate(entry.instrs):
            rows.append(f"{i:5d}  {instr.scope:<20} {line(instr)}    # {instr.where}")
        rows.append(f"       -> {', '.join(show(r) for r in entry.results)}")
    return "\n".join(rows)


def program_hash(program: Program) -> str:
    """Short SHA-256 over what is computed: instructions, formats, state; not over source lines."""
    digest = hashlib.sha256(program.name.encode())
    for entry in program.entries.values():
        for instr in entry.instrs:
            digest.update(line(instr).encode())
        digest.update(", ".join(show(r) for r in entry.results).encode())
    for part in (*program.weights.values(), *program.states):
        digest.update(repr(part).encode())
    return digest.hexdigest()[:16]
