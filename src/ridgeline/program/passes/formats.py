"""What the model function leaves open: stored formats from the source, held ones from the backend, the KV format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ridgeline.errors import Unsupported
from ridgeline.program.ir import Operand, Program, StateRef, Weight
from ridgeline.program.passes.rewrite import map_entries, map_operands, map_weights


def bind_formats(program: Program, format_of: Callable[[Weight], str]) -> Program:
    """`format_of(weight)` names the format of each weight that has none; constants keep float32."""

    def bind(w: Weight) -> Weight:
        return w if w.format else replace(w, format=format_of(w))

    return map_weights(program, bind)


def hold_formats(program: Program, held_as: Mapping[str, str]) -> Program:
    """Each stored format becomes the one the backend holds it in. Unsupported names a weight it does not take.

    Comes after fusing: parts are merged by their stored format, which is what is read and packed.
    """

    def hold(w: Weight) -> Weight:
        if w.format not in held_as:
            raise Unsupported(f"{w.name} is stored as {w.format!r}; this backend takes {', '.join(held_as)}")
        return w if held_as[w.format] == w.format else replace(w, format=held_as[w.format])

    return map_weights(program, hold)


def bind_kv_format(program: Program, format: str) -> Program:
    """Keys and values of every group are stored in `format`."""

    def operand(x: Operand) -> Operand:
        if not isinstance(x, StateRef) or x.state.format == format:
            return x
        return replace(x, state=replace(x.state, format=format))

    return map_entries(program, lambda e: replace(e, instrs=tuple(map_operands(i, operand) for i in e.instrs)))
