"""Capture: run a model function on traced values and keep the list of what it called.

A model function is `forward(m, config)` and `logits(m, config, hidden)`, where `m` is a Context: it hands out batch
fields, weights and state. Tracer hands out traced values and records; Eager hands out arrays and computes, so the
same function runs under a debugger line by line. Recording state lives in the Tracer, never in a global.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from ridgeline import ops
from ridgeline.ops.spec import Array, OpSpec, TensorType
from ridgeline.program.batch import FIELD_TYPES
from ridgeline.program.ir import (
    Buffer,
    Entry,
    Field,
    Instr,
    Operand,
    Program,
    State,
    StateRef,
    View,
    Weight,
)

_SKIP = tuple(os.path.join(os.path.dirname(os.path.dirname(__file__)), part) for part in ("ops", "program"))


class Context(Protocol):
    """What a model function sees. All values are arrays (Eager) or traced values (Tracer)."""

    def field(self, name: str) -> Any:
        """A batch field by its name in program/batch.py; per-group fields as "page_table.<group>"."""

    def weight(self, name: str, shape: Sequence[int], axes: Sequence[str]) -> Any:
        """A parameter with named axes ("vocab", "heads", "kv_heads", "ffn", "experts", or "" for uncut ones)."""

    def constant(self, name: str, values: Sequence[float]) -> Any:
        """A vector computed from the config (rope frequencies, ALiBi slopes)."""

    def state(self, state: State, layer: int) -> Any:
        """Layer `layer` of a state group."""

    def scope(self, name: str) -> Any:
        """Context manager: what is recorded inside belongs to this part of the model."""


@dataclass(frozen=True)
class Value:
    """A traced operand. `x[:, a:b]` is a free column view; calling an op with it records an instruction."""

    tracer: Tracer
    operand: Operand

    @property
    def type(self) -> TensorType:
        assert isinstance(self.operand, (View, Field, Weight))
        return self.operand.type

    @property
    def shape(self) -> tuple[Any, ...]:
        return self.type.shape

    @property
    def view(self) -> View:
        assert isinstance(self.operand, View)
        return self.operand

    def record(self, spec: OpSpec, operands: tuple[Any, ...], attrs: Mapping[str, Any]) -> Any:
        return self.tracer.record(spec, operands, attrs)

    def __getitem__(self, key: tuple[slice, slice]) -> Value:
        rows, columns = key
        assert rows == slice(None) and columns.step is None, "only column slices are views"
        view = self.view
        start, stop, _ = columns.indices(view.type.columns)
        return Value(self.tracer, View(view.buffer, view.start + start, view.start + stop))


class Tracer:
    """Context that records. One tracer captures one program."""

    def __init__(self) -> None:
        self.instrs: list[Instr] = []
        self._scope: list[str] = []
        self._next_id = 0

    def field(self, name: str) -> Value:
        return Value(self, Field(name, FIELD_TYPES[name.split(".", maxsplit=1)[0]]))

    def weight(self, name: str, shape: Sequence[int], axes: Sequence[str]) -> Value:
        assert len(shape) == len(axes), name
        return Value(self, Weight(name, tuple(shape), tuple(axes), parts=(name,)))

    def constant(self, name: str, values: Sequence[float]) -> Value:
        return Value(self, Weight(name, (len(values),), ("",), "f32", constant=tuple(values)))

    def state(self, state: State, layer: int) -> Value:
        assert 0 <= layer < state.layers, f"{state.name} has no layer {layer}"
        return Value(self, StateRef(state, layer))

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        self._scope.append(name)
        yield
        self._scope.pop()

    def param(self, type: TensorType) -> Value:
        """A buffer given from outside the entry."""
        return self._value(self._buffer(type))

    def record(self, spec: OpSpec, operands: tuple[Any, ...], attrs: Mapping[str, Any]) -> Any:
        bound = spec.bind(tuple(x.operand if isinstance(x, Value) else x for x in operands))
        bad = [name for name, x in bound.items() if not isinstance(x, Operand)]
        assert not bad, f"{spec.name}: {bad} are arrays among traced values; declare them with m.constant"
        shaped = [getattr(x, "type", x) for x in bound.values()]
        types = spec.shape(*_trim(shaped), **attrs)
        outputs = tuple(self._buffer(t) for t in (types if isinstance(types, tuple) else (types,)))
        self.instrs.append(Instr(spec.name, bound, outputs, dict(attrs), ".".join(self._scope), _caller()))
        values = tuple(self._value(b) for b in outputs)
        return values if isinstance(types, tuple) else values[0]

    def take(self) -> tuple[Instr, ...]:
        """The instructions recorded since the last call."""
        taken, self.instrs = tuple(self.instrs), []
        return taken

    def _buffer(self, type: TensorType) -> Buffer:
        self._next_id += 1
        return Buffer(self._next_id - 1, type)

    def _value(self, buffer: Buffer) -> Value:
        return Value(self, View(buffer, 0, buffer.type.columns if len(buffer.type.shape) > 1 else 1))


class Eager:
    """Context that computes with numpy: arrays in, arrays out, nothing recorded."""

    def __init__(self, fields: Mapping[str, Array], weights: Mapping[str, Array], states: Mapping[Any, Any]) -> None:
        self._fields, self._weights, self._states = fields, weights, states

    def field(self, name: str) -> Array:
        return self._fields[name]

    def weight(self, name: str, shape: Sequence[int], axes: Sequence[str]) -> Array:
        weight = self._weights[name]
        assert weight.shape == tuple(shape), f"{name}: {weight.shape} is not {tuple(shape)}"
        return weight

    def constant(self, name: str, values: Sequence[float]) -> Array:
        import numpy as np

        return np.array(values, np.float32)

    def state(self, state: State, layer: int) -> Any:
        return self._states[state.name, layer]

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        yield


def capture(name: str, forward: Callable[[Context], tuple[Any, Any]], logits: Callable[[Context, Any], Any]) -> Program:
    """Record both entries of a model.

    `forward(m)` gives (kept rows, hidden) as [L, hidden]: the rows as they are held back for a later step, and the
    same after the final norm. `logits(m, hidden)` gives [L, vocab]; `sample` is appended to it.
    """
    m = Tracer()
    kept, hidden = forward(m)
    first = Entry((), m.take(), (kept.operand, hidden.operand))
    given = m.param(hidden.type)
    with m.scope("sample"):
        scores = logits(m, given)
        picked = ops.sample(scores, *(m.field(p.name) for p in ops.sample.spec.params[1:]))
    results = (*(v.operand for v in picked), scores.operand)
    return Program(name, first, Entry((given.view.buffer,), m.take(), results))


def _trim(types: list[Any]) -> list[Any]:
    while types and types[-1] is None:
        types.pop()
    return types


def _caller() -> str:
    """file:line of the nearest frame outside ops/ and program/: the line of the model that called the op."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_SKIP):
        frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
