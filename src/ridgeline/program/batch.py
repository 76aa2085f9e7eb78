"""Batch: one contiguous, versioned buffer that says what a step computes; and StepResult, what it gives back.

Fields are named program inputs, used as ordinary operands. The same bytes serve numpy, C++, shared memory and a
second process. Capacities are compile constants; the header holds the actual sizes of the step.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from ridgeline.ops.sample import SAMPLER
from ridgeline.ops.spec import Array, Shape, TensorType
from ridgeline.program.ir import State

MAGIC = 0x4742_4C52  # "RLBG"
VERSION = 1
HEADER = ("magic", "version", "bytes", "step", "T", "R", "L", "C", "E", "H", "M")  # int64 each, 16 slots
_PLACE = {name: i for i, name in enumerate(HEADER)}
_ALIGN = 64

# want bits of a row
WANT_IDS, WANT_LOGPROBS, WANT_HIDDEN, WANT_LOGITS, WANT_HOLD = 1, 2, 4, 8, 16
WANT_SAMPLE = WANT_IDS | WANT_LOGPROBS | WANT_LOGITS  # a step in which no row wants any of these computes no logits

# Axes: T tokens, R requests, L rows, C copies, E bias entries, H history entries, M masks; P pages of a request,
# D path depth, I input rows, A position axes, V mask words, W hidden columns are capacities fixed at compile time.
FIELDS: dict[str, tuple[tuple[str, ...], str]] = {
    "ids": (("T",), "i4"),
    "source_step": (("T",), "i8"),  # -1: ids are given; else the step whose row source_row sampled this token
    "source_row": (("T",), "i4"),
    "positions": (("A", "T"), "i4"),
    "request": (("T",), "i4"),
    "adapter": (("T",), "i4"),  # -1 = none
    "kv_len": (("T",), "i4"),
    "path": (("T", "D"), "i4"),  # slots of a tree row's ancestors and itself, -1 padded
    "span": (("T",), "i4"),  # end of a bidirectional span, 0 = none
    "input_row": (("T",), "i4"),  # -1 = none
    "input_rows": (("I", "W"), "f4"),
    "page_table": (("R", "P"), "i4"),  # per group
    "kv_slot": (("T",), "i4"),  # per group
    "copies": (("C", "4"), "i4"),  # group, source slot, target slot, slots; executed first, in order
    "out_rows": (("L",), "i4"),  # token row of this step, or -1 - h for held row h
    "want": (("L",), "i4"),
    "hold_slot": (("L",), "i4"),  # where a WANT_HOLD row is kept
    "sampler": (("L",), "sampler"),
    "bias_ids": (("E",), "i4"),
    "bias_values": (("E",), "f4"),
    "history_ids": (("H",), "i4"),
    "history_prompt": (("H",), "i4"),
    "history_output": (("H",), "i4"),
    "masks": (("M", "V"), "u4"),
}
PER_GROUP = ("page_table", "kv_slot")
_DEFAULTS = {"source_step": -1, "source_row": -1, "adapter": -1, "path": -1, "input_row": -1, "page_table": -1}
_IR_DTYPES = {"i4": "i32", "i8": "i64", "f4": "f32", "u4": "u32", "sampler": "sampler"}
_SYMBOLS = "TRL"


def _ir_shape(axes: Sequence[str]) -> Shape:
    # Axes other than T, R, L are capacities: traffic over them is the op's own cost rule, so their size is 1 here.
    return tuple(a if a in _SYMBOLS else 1 for a in axes)


FIELD_TYPES = {name: TensorType(_ir_shape(axes), _IR_DTYPES[dtype]) for name, (axes, dtype) in FIELDS.items()}
FIELD_TYPES["held"] = TensorType((1, 1))  # rows kept from earlier steps: the backend's memory, not the batch's


@dataclass(frozen=True)
class Limits:
    """Capacities of a batch: compile constants of a step."""

    tokens: int  # max T
    requests: int  # max R
    rows: int  # max L
    pages: int  # max pages of one request
    vocab: int
    hidden: int
    copies: int = 64
    bias: int = 4096
    history: int = 65536
    masks: int = 0
    depth: int = 0
    input_rows: int = 0
    position_axes: int = 1
    held: int = 0

    def capacity(self, axis: str) -> int:
        """Capacity of a field axis."""
        sizes = {
            "T": self.tokens, "R": self.requests, "L": self.rows, "P": self.pages, "C": self.copies,
            "E": self.bias, "H": self.history, "M": self.masks, "D": self.depth, "I": self.input_rows,
            "A": self.position_axes, "V": -(-self.vocab // 32), "W": self.hidden,
        }  # fmt: skip
        return sizes[axis] if axis in sizes else int(axis)


@dataclass(frozen=True)
class FieldSlot:
    """Where a field lies in the buffer: byte offset, capacity shape, numpy type."""

    name: str
    offset: int
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    dtype: np.dtype[np.generic]


@dataclass(frozen=True)
class BatchLayout:
    """Offsets of all fields for given limits and state groups. Equal inputs give equal layouts on every machine."""

    limits: Limits
    groups: tuple[str, ...]

    @classmethod
    def of(cls, limits: Limits, states: Sequence[State]) -> BatchLayout:
        return cls(limits, tuple(s.name for s in states))

    @functools.cached_property
    def slots(self) -> dict[str, FieldSlot]:
        offset, slots = 8 * 16, {}
        for name, (axes, kind) in FIELDS.items():
            dtype = SAMPLER if kind == "sampler" else np.dtype(kind)
            shape = tuple(self.limits.capacity(a) for a in axes)
            for label in [f"{name}.{g}" for g in self.groups] if name in PER_GROUP else [name]:
                slots[label] = FieldSlot(label, offset, shape, axes, dtype)
                size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
                offset += -(-size // _ALIGN) * _ALIGN
        return slots

    @functools.cached_property
    def nbytes(self) -> int:
        last = list(self.slots.values())[-1]
        size = int(np.prod(last.shape, dtype=np.int64)) * last.dtype.itemsize
        return last.offset + -(-size // _ALIGN) * _ALIGN


class Batch:
    """A buffer with a layout. `b["ids"]` is the part in use (T, R, L... from the header); `b.full("ids")` all of it.

    `ints` and `longs` are the whole buffer as int32 and int64: decoding sets a dozen numbers a step, after weights have
    passed through the caches, and would find its way through numpy cold (docs/log.md).
    """

    def __init__(self, layout: BatchLayout, buffer: Array | None = None) -> None:
        self.layout = layout
        self.buffer = np.zeros(layout.nbytes, np.uint8) if buffer is None else buffer
        self.header = self.buffer[: 8 * 16].view(np.int64)
        self.ints, self.longs = self.buffer.data.cast("i"), self.buffer.data.cast("q")
        self._fields = {name: self._view(slot) for name, slot in layout.slots.items()}
        capacities = {axis: layout.limits.capacity(axis) for slot in layout.slots.values() for axis in slot.axes}
        self._fixed = {axis: size for axis, size in capacities.items() if axis not in _PLACE}
        self._most = {axis: layout.limits.capacity(axis) for axis in HEADER[4:]}
        if buffer is None:
            self.header[:3] = MAGIC, VERSION, layout.nbytes
            for name in layout.slots:
                self.full(name).fill(_DEFAULTS.get(name.split(".")[0], 0)) if name != "sampler" else None
        assert tuple(self.header[:3]) == (MAGIC, VERSION, layout.nbytes), "batch of another layout or version"

    def size(self, axis: str) -> int:
        """Actual size of an axis in this step."""
        return self.longs[_PLACE[axis]] if axis in _PLACE else self._fixed[axis]

    def resize(self, **sizes: int) -> None:
        """Set actual sizes, e.g. resize(T=7, R=2, L=2)."""
        for axis, size in sizes.items():
            if axis != "step":
                assert size <= self._most[axis], f"{axis}={size} is over the batch's capacity"
            self.longs[_PLACE[axis]] = size

    def begin(self, step: int, tokens: int, requests: int, rows: int) -> None:
        """Sizes of a new step, which copies nothing and has no lists and masks yet."""
        most = self._most
        assert tokens <= most["T"] and requests <= most["R"] and rows <= most["L"], "the step is over capacity"
        for place, size in enumerate((step, tokens, requests, rows, 0, 0, 0, 0), _PLACE["step"]):
            self.longs[place] = size

    def full(self, name: str) -> Array:
        """The whole field at its capacity, writable."""
        return self._fields[name]

    def __getitem__(self, name: str) -> Array:
        axes = self.layout.slots[name].axes
        if len(axes) == 1:
            return self._fields[name][: self.size(axes[0])]
        return self._fields[name][tuple(slice(0, self.size(axis)) for axis in axes)]

    def _view(self, slot: FieldSlot) -> Array:
        size = int(np.prod(slot.shape, dtype=np.int64)) * slot.dtype.itemsize
        return self.buffer[slot.offset : slot.offset + size].view(slot.dtype).reshape(slot.shape)

    def fields(self) -> dict[str, Array]:
        """All fields in use, by name."""
        return {name: self[name] for name in self.layout.slots}


class StepResult(msgspec.Struct):
    """What a step gives back, one entry per row of the batch; `hidden` and `logits` only where a row wants them. Where
    all rows want ids alone, a backend may leave out the rest. `extra` are further results of the forward entry, one row
    per token (passes/observe.py)."""

    step: int
    ids: Array  # i32 [L]
    logprobs: Array | None = None  # f32 [L]
    top_ids: Array | None = None  # i32 [L, MAX_TOP], -1 padded
    top_logprobs: Array | None = None  # f32 [L, MAX_TOP]
    hidden: Array | None = None  # f32 [L, hidden]
    logits: Array | None = None  # f32 [L, vocab]
    extra: tuple[Array, ...] = ()  # f32 [T, columns]
