"""The flat record of a program: what the native loop decodes once and then runs.

Little-endian int64 words: header, buffers, fields, states, instructions, places of held rows and copies. The native
side names the ops it has with their operands and attributes (`op_signatures`); whatever else a program asks for is
refused here, by name. Nothing here knows weights' bytes or memory's addresses.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ridgeline.backends.cpu import _native
from ridgeline.errors import Unsupported
from ridgeline.ops.spec import OPS
from ridgeline.program.batch import HEADER, FieldSlot
from ridgeline.program.ir import Buffer, Entry, Field, Instr, Operand, StateRef, View, Weight
from ridgeline.program.memory import MemoryPlan

_NONE, _BUFFER, _WEIGHT, _VECTOR, _FIELD, _STATE, _HELD = range(7)
_TYPES = {"f32": 0, "i8g32": 1, "i32": 2, "bf16": 3, "i8": 4, "i8g64": 5, "i8g128": 6, "i8g32x2": 7}
_KV_FORMATS = {"f32": 0, "bf16": 1, "int8": 2}
# Which rows a linear over weights of a held format may read, besides float32 ones; the best first.
_GROUPS_OF_32 = ("q8_0", "q4_0", "q4_1", "uint8_g32", "k2", "k3", "k4", "k5", "k6", "k8")
MULTIPLIES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_GROUPS_OF_32, ("i8g32", "i8g32x2")),
    **dict.fromkeys(("int4_g64", "uint4_g64"), ("i8g64",)),
    **dict.fromkeys(("int4_g128", "uint4_g128", "int8_g128"), ("i8g128",)),
    "int8": ("i8", "i8g32", "i8g32x2"),
    "bf16": ("bf16",),
}
_SIZED = HEADER[4:]  # header slots that hold sizes: T, R, L, ...


class Signature(msgspec.Struct, frozen=True):
    """A native op: its opcode, operand kinds by name, and attributes."""

    opcode: int
    operands: Mapping[str, str]
    ints: tuple[str, ...]
    floats: tuple[str, ...]


SIGNATURES = {
    name: Signature(i, dict(zip(names.split(), kinds, strict=True)), tuple(ints.split()), tuple(floats.split()))
    for i, (name, names, kinds, _, ints, floats) in enumerate(_native.op_signatures())
}


class Extents(msgspec.Struct, frozen=True):
    """Sizes that an entry alone does not tell: the batch's layout and capacities, pages, rows held between steps."""

    slots: Mapping[str, FieldSlot]
    batch_bytes: int
    capacity: Mapping[str, int]  # by symbol: T, R, L, C, E, H, M
    groups: tuple[str, ...] = ()
    pages: int = 0
    held: tuple[int, int] = (0, 0)


class Record(msgspec.Struct):
    """The words, and the parameters they refer to by position: packed weights, and plain float32 vectors."""

    words: NDArray[np.int64]
    weights: list[Weight] = msgspec.field(default_factory=list)
    vectors: list[Weight] = msgspec.field(default_factory=list)


def encode(
    entry: Entry, plan: MemoryPlan, extents: Extents, kept: Buffer | None = None, sample: int | None = None
) -> Record:
    """The record of `entry`; rows of `kept` that a batch wants held are copied out at the end of a step. From
    instruction `sample` on, it runs only where a row is sampled from."""
    return _Encoder(entry, plan, extents).encode(kept, len(entry.instrs) if sample is None else sample)


class _Encoder:
    """Numbers what instructions refer to, in order of first use."""

    def __init__(self, entry: Entry, plan: MemoryPlan, extents: Extents) -> None:
        self.entry, self.plan, self.extents = entry, plan, extents
        self.buffers = [*entry.params, *(b for i in entry.instrs for b in i.outputs)]
        self.buffer_index = {b.id: i for i, b in enumerate(self.buffers)}
        self.fields = {name: i for i, name in enumerate(extents.slots)}
        self.states = list(
            dict.fromkeys(x for i in entry.instrs for x in i.operands.values() if isinstance(x, StateRef))
        )
        self.weights: dict[Weight, int] = {}
        self.vectors: dict[Weight, int] = {}

    def encode(self, kept: Buffer | None, sample: int) -> Record:
        x = self.extents
        instrs = [w for i in self.entry.instrs for w in self._instr(i)]
        layers = max((s.state.layers for s in self.states), default=1)
        sizes = [x.capacity.get(axis, 0) for axis in _SIZED]
        words = [self.plan.nbytes, x.batch_bytes, x.pages, layers, *x.held, *sizes, len(self.buffers)]
        words += [w for b in self.buffers for w in self._buffer(b)]
        words += [len(x.slots), *(w for s in x.slots.values() for w in _field(s))]
        words += [len(self.states), *(w for s in self.states for w in self._state(s))]
        words += [len(self.entry.instrs), *instrs]
        results = dict.fromkeys(self.buffer_index[r.buffer.id] for r in self.entry.results)
        words += [len(results), *results]
        holds = kept is not None and x.held[0] > 0
        words += [sample, self.buffer_index[kept.id] if kept is not None and holds else -1]
        words += [self.fields["hold_slot"] if holds else -1, self.fields.get("want", -1)]
        words.append(self.fields.get("copies", -1) if self.states else -1)
        words = [_native.RECORD_MAGIC, _native.RECORD_VERSION, len(words) + 3, *words]
        return Record(np.array(words, np.int64), list(self.weights), list(self.vectors))

    def _buffer(self, b: Buffer) -> tuple[int, ...]:
        rows = b.type.shape[0]
        columns = b.type.columns if len(b.type.shape) > 1 else 1
        axis, size = (HEADER.index(rows), self.extents.capacity[rows]) if isinstance(rows, str) else (0, rows)
        return self.plan.offsets[b.id], axis, size, columns, _TYPES[b.type.dtype]

    def _state(self, s: StateRef) -> tuple[int, ...]:
        if s.state.kind != "kv" or s.state.format not in _KV_FORMATS:
            raise Unsupported(f"the cpu backend has no state of kind {s.state.kind!r} in format {s.state.format!r}")
        group = self.extents.groups.index(s.state.name)
        return _KV_FORMATS[s.state.format], s.state.n_kv_heads, s.state.head_dim, group, s.layer

    def _instr(self, instr: Instr) -> list[int]:
        name = _native_name(instr)
        if name not in SIGNATURES:
            raise Unsupported(f"the cpu backend has no op {instr.op} ({instr.scope}, {instr.where})")
        signature = SIGNATURES[name]
        for label in instr.operands.keys() - signature.operands.keys():
            if self._present(instr.operands[label]):
                raise Unsupported(f"the cpu backend's {instr.op} has no operand {label} ({instr.scope}, {instr.where})")
        words = [signature.opcode, len(signature.operands)]
        for label, kind in signature.operands.items():
            words += self._operand(instr, label, kind.lower())
        words += [len(instr.outputs), *(self.buffer_index[b.id] for b in instr.outputs)]
        attrs = _attributes(instr, signature)
        words += [len(signature.ints), *(int(attrs[a]) for a in signature.ints)]
        return [*words, len(signature.floats), *(_bits(float(attrs[a])) for a in signature.floats)]

    def _present(self, x: Operand) -> bool:
        """Whether an operand can carry anything: not missing, not a field without room."""
        if isinstance(x, Field):
            return x.name != "held" and 0 not in self.extents.slots[x.name].shape
        return x is not None

    def _operand(self, instr: Instr, label: str, kind: str) -> tuple[int, int, int, int]:
        x = instr.operands[label]
        if kind == "h":
            return (_HELD if x is not None and self.extents.held[0] else _NONE), 0, 0, 0
        match x:
            case None:
                return _NONE, 0, 0, 0
            case View(buffer, start, stop) if kind in "aqb":
                return _BUFFER, self.buffer_index[buffer.id], start, stop
            case Weight() if kind == "v":
                return _VECTOR, self.vectors.setdefault(x, len(self.vectors)), 0, 0
            case Weight() if kind == "w":
                return _WEIGHT, self.weights.setdefault(x, len(self.weights)), 0, 0
            case Field(name) if kind == "f":
                return _FIELD, self.fields[name], 0, 0
            case StateRef() if kind == "s":
                return _STATE, self.states.index(x), 0, 0
        raise Unsupported(f"the cpu backend's {instr.op} does not take {type(x).__name__} as {label} ({instr.where})")


def _native_name(instr: Instr) -> str:
    """The native op: linear and quantize_act have one for each kind of row."""
    if instr.op == "quantize_act":
        return {"bf16": "round_bf16", "f32": "cut"}.get(instr.outputs[0].type.dtype, instr.op)
    x, w = instr.operands.get("x"), instr.operands.get("w")
    if instr.op != "linear" or not isinstance(x, View) or x.buffer.type.dtype == "f32":
        return instr.op
    rows = x.buffer.type.dtype
    if isinstance(w, Weight) and rows not in MULTIPLIES.get(w.format, ()):
        raise Unsupported(f"the cpu backend cannot multiply {rows} rows by {w.format} weights ({w.name})")
    return "linear_bf16" if rows == "bf16" else "linear_i8"


def _attributes(instr: Instr, signature: Signature) -> dict[str, Any]:
    """Attributes with the op's defaults; one that the native op lacks must have its default value."""
    defaults = OPS[instr.op].meaning.__kwdefaults__ or {}
    for name in instr.attrs.keys() - {*signature.ints, *signature.floats, "dtype"}:  # the output's type says it
        if instr.attrs[name] != defaults.get(name):
            value = instr.attrs[name]
            raise Unsupported(f"the cpu backend's {instr.op} has no attribute {name}={value!r} ({instr.where})")
    return {**defaults, **instr.attrs}


def _field(slot: FieldSlot) -> tuple[int, int, int, int]:
    outer = slot.shape[0]
    return slot.offset, outer, int(np.prod(slot.shape[1:], dtype=np.int64)), slot.dtype.itemsize


def _bits(x: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", x))[0])
