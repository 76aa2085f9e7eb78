"""The program: a flat list of instructions with shapes, weights and state. Records only, no graph, no behaviour.

Everything else (cost, memory, sharding, quantisation, the C++ loop) is a fold or a pass over these lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ridgeline.ops.attention import KV_FORMATS, PAGE
from ridgeline.ops.spec import TensorType


@dataclass(frozen=True)
class Buffer:
    """A result of an instruction: rows [T or L, columns]; `id` is unique in the program."""

    id: int
    type: TensorType


@dataclass(frozen=True)
class View:
    """Columns start..stop of a buffer, used as an operand; the whole buffer is a view too."""

    buffer: Buffer
    start: int
    stop: int

    @property
    def type(self) -> TensorType:
        whole = self.buffer.type
        if len(whole.shape) == 1 or (self.start == 0 and self.stop == whole.shape[-1]):
            return whole
        return TensorType((*whole.shape[:-1], self.stop - self.start), whole.dtype)


@dataclass(frozen=True)
class Field:
    """A named field of the batch (see program/batch.py) used as an operand."""

    name: str
    type: TensorType


@dataclass(frozen=True)
class Weight:
    """A parameter: shape with named axes, storage format, and where its rows come from.

    `parts` are the names of the stored tensors whose rows, one after the other, make this weight; `rows` optionally
    cuts [start, stop) ranges of each part, `columns` one range of the last axis (sharding). `format` is "" until
    the source is known. A `constant` is computed from the config, not loaded. A weight with `repack` is packed anew in
    that format when it is read. `smooth` names a vector s of calibrated scales: a matrix is read with its columns
    multiplied by s, a vector divided by it.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    format: str = ""
    parts: tuple[str, ...] = ()
    rows: tuple[tuple[int, int], ...] = ()
    columns: tuple[int, int] | None = None
    constant: tuple[float, ...] | None = None
    repack: str = ""
    smooth: str = ""

    @property
    def type(self) -> TensorType:
        return TensorType(self.shape)


@dataclass(frozen=True)
class State:
    """A group of layers whose state shares one page table and one reuse rule.

    kind "kv": a page holds 64 keys of every layer of the group; kind "recurrent": a page holds one request's
    snapshot of `recurrent_bytes` per layer. reuse: "any" token, "page" boundary, or "snapshot" only. Pages of all
    groups have equal bytes and come from one pool.
    """

    name: str
    layers: int
    n_kv_heads: int = 0
    head_dim: int = 0
    format: str = "f32"
    window: int = 0
    kind: str = "kv"
    reuse: str = "any"
    recurrent_bytes: int = 0

    @property
    def layer_token_bytes(self) -> float:
        """Bytes of one key and value in one layer."""
        return 2.0 * self.n_kv_heads * KV_FORMATS[self.format].head_bytes(self.head_dim)

    @property
    def page_bytes(self) -> int:
        per_layer = self.layer_token_bytes * PAGE if self.kind == "kv" else self.recurrent_bytes
        return int(self.layers * per_layer)


@dataclass(frozen=True)
class StateRef:
    """One layer of a state group, as an operand."""

    state: State
    layer: int

    @property
    def head_dim(self) -> int:
        return self.state.head_dim

    @property
    def layer_token_bytes(self) -> float:
        return self.state.layer_token_bytes


@dataclass(frozen=True)
class CommRef:
    """The communicator of a mesh axis, bound by the executor of a rank."""

    axis: str
    size: int


Operand = View | Field | Weight | StateRef | CommRef | None


@dataclass(frozen=True)
class Instr:
    """One op on operands (by parameter name) giving outputs. `scope` is the layer, `where` the model's file:line."""

    op: str
    operands: Mapping[str, Operand]
    outputs: tuple[Buffer, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    scope: str = ""
    where: str = ""


@dataclass(frozen=True)
class Entry:
    """A callable part of a program: parameters (buffers given from outside), instructions, results."""

    params: tuple[Buffer, ...]
    instrs: tuple[Instr, ...]
    results: tuple[View, ...]


@dataclass(frozen=True)
class Program:
    """Two entries share weights: `forward` gives the rows that need logits, `sample` turns them into tokens."""

    name: str
    forward: Entry
    sample: Entry

    @property
    def entries(self) -> dict[str, Entry]:
        return {"forward": self.forward, "sample": self.sample}

    @property
    def instrs(self) -> tuple[Instr, ...]:
        return self.forward.instrs + self.sample.instrs

    def operands(self) -> list[Operand]:
        """All operands in order of use, repeated where used again."""
        return [x for i in self.instrs for x in i.operands.values()]

    @property
    def weights(self) -> dict[str, Weight]:
        """Weights by name in order of first use; one used twice (tied) appears once."""
        return {w.name: w for w in self.operands() if isinstance(w, Weight)}

    @property
    def states(self) -> tuple[State, ...]:
        """State groups in order of first use."""
        return tuple(dict.fromkeys(x.state for x in self.operands() if isinstance(x, StateRef)))
