"""bind_formats: give each weight the storage format its source has, and find the stored tensors it is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ridgeline.program.ir import Program, Weight
from ridgeline.program.passes.rewrite import map_weights


def bind_formats(program: Program, format_of: Callable[[Weight], str]) -> Program:
    """`format_of(weight)` names the format of each weight that has none; constants keep float32."""

    def bind(w: Weight) -> Weight:
        return w if w.format else replace(w, format=format_of(w))

    return map_weights(program, bind)
