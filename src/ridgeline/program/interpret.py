"""Interpret: run an entry instruction by instruction with a meaning of each op. Numpy's are the definition of correct.

Other backends that go op by op bring their own table of meanings over their own arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ridgeline.ops.linear import QuantizedRows
from ridgeline.ops.spec import OPS, TWO_TERMS, Array
from ridgeline.program.ir import CommRef, Entry, Field, Instr, Operand, StateRef, View, Weight


@dataclass(frozen=True)
class Bindings:
    """What operands mean in one step: arrays of fields and weights, stores of states, communicators by axis."""

    fields: Mapping[str, Array]
    weights: Mapping[str, Array]
    states: Mapping[tuple[str, int], Any]
    comms: Mapping[str, Any]


def interpret(
    entry: Entry, params: list[Any], bindings: Bindings, watch: Callable[[Instr, Any], None] | None = None,
    meanings: Mapping[str, Callable[..., Any]] | None = None,
) -> list[Any]:  # fmt: skip
    """Results of an entry. `watch(instr, outputs)` sees every instruction: calibration and debugging hook in here.

    `meanings` (op -> function) replaces the numpy meanings of the op table; operands and attributes are the same.
    """
    values: dict[int, Any] = {b.id: x for b, x in zip(entry.params, params, strict=True)}
    for instr in entry.instrs:
        operands = [_resolve(x, values, bindings) for x in instr.operands.values()]
        meaning = OPS[instr.op].meaning if meanings is None else meanings[instr.op]
        out = meaning(*operands, **instr.attrs)
        outs = out if isinstance(out, tuple) else (out,)
        values.update((b.id, x) for b, x in zip(instr.outputs, outs, strict=True))
        if watch is not None:
            watch(instr, outs)
    return [_resolve(r, values, bindings) for r in entry.results]


def _resolve(x: Operand, values: Mapping[int, Any], b: Bindings) -> Any:
    match x:
        case None:
            return None
        case View(buffer, start, stop):
            return _columns(values[buffer.id], start, stop)
        case Field(name):
            return b.fields[name]
        case Weight(name):
            return b.weights[name]
        case StateRef(state, layer):
            return b.states[state.name, layer]
        case CommRef(axis):
            return b.comms[axis]


def _columns(value: Any, start: int, stop: int) -> Any:
    if not isinstance(value, QuantizedRows):
        return value[:, start:stop] if value.ndim > 1 else value
    if (start, stop) == (0, value.columns):
        return value
    assert value.dtype not in TWO_TERMS, "rows of two terms have no column views"
    group = value.group
    assert start % group == 0, "a view of quantised rows starts inside a group"
    end = -(-stop // group)
    q, scale = value.q[:, start : end * group], value.scale[:, start // group : end]
    return QuantizedRows(q, scale, min(stop, value.columns) - start, value.dtype)
