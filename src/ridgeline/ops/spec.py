"""The op table: what an op is, and how calling one either records or computes.

An op is one entry: signature, shape rule, cost rule, numpy meaning, tolerance and test cases. Calling it with
traced values records an instruction; calling it with arrays runs the numpy meaning. Backends read this table and
are tested against its cases; nothing here knows a backend, a model or a program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Size = int | str  # an int, or one of the symbols "T", "R", "L"
Shape = tuple[Size, ...]

GROUP = 32  # columns that share a scale in rows of type i8g32; every int8 row is padded to a multiple of it
# int8 row types: columns per scale, 0 for the whole row. An "x2" row is two int8 rows, whose sum it means.
INT8_GROUPS = {"i8g32": 32, "i8g64": 64, "i8g128": 128, "i8": 0, "i8g32x2": 32}
TWO_TERMS = ("i8g32x2",)
TERM_RATIO = 128  # of the scales of the two: what the first leaves is at most 64 steps of the second
ROWS = ("f32", *INT8_GROUPS, "bf16")  # what linear's rows may be

_BF16_GAP = 64  # bytes behind a row: rows 4 KiB apart would share cache sets
_ELEMENT_BYTES = {"f32": 4, "i32": 4, "u32": 4, "i64": 8, "u64": 8, "sampler": 120}


@dataclass(frozen=True)
class TensorType:
    """Shape (with symbols) and element type of an operand."""

    shape: Shape
    dtype: str = "f32"

    @property
    def columns(self) -> int:
        """Size of the last axis, which is never symbolic."""
        last = self.shape[-1]
        assert isinstance(last, int), f"last axis of {self.shape} is symbolic"
        return last


@dataclass(frozen=True)
class Load:
    """What one step carries: per request (keys already cached, new tokens), and the rows that need logits."""

    spans: tuple[tuple[int, int], ...]
    rows: int

    @property
    def tokens(self) -> int:
        return sum(new for _, new in self.spans)

    def size(self, symbol: Size) -> int:
        """Value of a size or symbol in this step."""
        if isinstance(symbol, int):
            return symbol
        return {"T": self.tokens, "R": len(self.spans), "L": self.rows}[symbol]

    def attended(self, window: int) -> int:
        """Sum over tokens of the keys each one attends to (window 0 = all earlier keys and itself)."""
        total = 0
        for start, new in self.spans:
            free = new if not window else max(0, min(new, window - start))
            total += free * start + free * (free + 1) // 2 + (new - free) * window
        return total

    def cached(self, window: int) -> int:
        """Sum over requests of the distinct keys read from the cache, at least once each."""
        return sum(start + new if not window else min(start + new, window + new - 1) for start, new in self.spans)


@dataclass(frozen=True)
class Cost:
    """FLOPs and bytes of one instruction in one step. Bytes are the compulsory traffic: each operand once."""

    flops: float = 0.0
    weight_bytes: float = 0.0
    kv_bytes: float = 0.0
    act_bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.weight_bytes + other.weight_bytes,
            self.kv_bytes + other.kv_bytes,
            self.act_bytes + other.act_bytes,
        )

    @property
    def bytes(self) -> float:
        return self.weight_bytes + self.kv_bytes + self.act_bytes


@dataclass(frozen=True)
class Param:
    """One operand of an op. `kind`: act (activation), weight, field (batch input), state, comm."""

    name: str
    kind: str
    optional: bool = False


@dataclass(frozen=True)
class Case:
    """A test case: operands by name (numpy arrays; state operands as the op's own record) and attributes.

    `tolerance` replaces the op's where the case's own formats round more coarsely.
    """

    name: str
    operands: Mapping[str, Any]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 0.0


@dataclass(frozen=True)
class Call:
    """What a cost rule sees: operand and output types of one instruction, its attributes, and weight bytes."""

    ins: Mapping[str, Any]
    outs: tuple[TensorType, ...]
    attrs: Mapping[str, Any]
    weight_bytes: Mapping[str, float]

    def act(self, load: Load) -> float:
        """Bytes of all activation operands read once and all outputs written once."""
        acts = [t for name, t in self.ins.items() if isinstance(t, TensorType) and name not in self.weight_bytes]
        return sum(nbytes(t, load) for t in (*acts, *self.outs))


def nbytes(t: TensorType, load: Load) -> int:
    """Bytes of a tensor of type `t` in a step, without what only keeps its rows apart."""
    if t.dtype in _ELEMENT_BYTES:
        return elements(t, load) * _ELEMENT_BYTES[t.dtype]
    return elements(t, load) // t.columns * (row_bytes(t) - (_BF16_GAP if t.dtype == "bf16" else 0))


def groups_of(dtype: str, columns: int) -> tuple[int, int]:
    """(groups, columns of one, padding included) in an int8 row of `columns`; in each of its terms."""
    group = INT8_GROUPS[dtype] or -(-columns // GROUP) * GROUP
    return -(-columns // group), group


def row_bytes(t: TensorType) -> int:
    """Bytes from one row of a [rows, columns] activation to the next, or of one element of a vector."""
    columns = t.columns if len(t.shape) > 1 else 1
    if t.dtype in INT8_GROUPS:
        groups, group = groups_of(t.dtype, columns)
        term = groups * group + groups * 8  # values, then a scale and a sum per group
        return 2 * term if t.dtype in TWO_TERMS else term
    if t.dtype == "bf16":
        return -(-columns // 2) * 4 + _BF16_GAP  # whole pairs
    return columns * _ELEMENT_BYTES[t.dtype]


def elements(t: TensorType, load: Load) -> int:
    """Number of elements of a tensor of type `t` in a step."""
    count = 1
    for size in t.shape:
        count *= load.size(size)
    return count


@dataclass(frozen=True)
class OpSpec:
    """One entry of the op set. `tolerance` bounds |backend - meaning| relative to max |meaning|."""

    name: str
    params: tuple[Param, ...]
    shape: Callable[..., TensorType | tuple[TensorType, ...]]
    cost: Callable[[Call, Load], Cost]
    meaning: Callable[..., Any]
    cases: Callable[[np.random.Generator], Iterable[Case]]
    tolerance: float
    tier: str = "core"

    def bind(self, operands: tuple[Any, ...]) -> dict[str, Any]:
        """Operands by parameter name; missing optional ones are None."""
        assert len(operands) <= len(self.params), f"{self.name}: too many operands"
        bound = dict(zip((p.name for p in self.params), operands, strict=False))
        for p in self.params:
            bound.setdefault(p.name, None)
            assert bound[p.name] is not None or p.optional, f"{self.name}: operand {p.name} is missing"
        return bound


class Op:
    """A callable op: traced operands record an instruction, arrays compute its numpy meaning."""

    def __init__(self, spec: OpSpec) -> None:
        self.spec = spec

    def __call__(self, *operands: Any, **attrs: Any) -> Any:
        for x in operands:
            record = getattr(x, "record", None)
            if record is not None:
                return record(self.spec, operands, attrs)
        return self.spec.meaning(*operands, **attrs)


OPS: dict[str, OpSpec] = {}


def op(
    params: str,
    *,
    shape: Callable[..., TensorType | tuple[TensorType, ...]],
    cost: Callable[[Call, Load], Cost],
    cases: Callable[[np.random.Generator], Iterable[Case]],
    tolerance: float = 1e-5,
    tier: str = "core",
) -> Callable[[Callable[..., Any]], Op]:
    """Declare an op around its numpy meaning.

    `params` lists operands as "name:kind", with "?" after an optional one: "x:act w:weight bias:weight?".
    """

    def declare(meaning: Callable[..., Any]) -> Op:
        name = meaning.__name__
        parsed = []
        for word in params.split():
            label, kind = word.split(":")
            parsed.append(Param(label, kind.rstrip("?"), kind.endswith("?")))
        assert name not in OPS, f"op {name} is declared twice"
        OPS[name] = OpSpec(name, tuple(parsed), shape, cost, meaning, cases, tolerance, tier)
        return Op(OPS[name])

    return declare


def per_element(flops: float) -> Callable[[Call, Load], Cost]:
    """Cost rule of pointwise ops: `flops` per element of the first output, operands and outputs moved once."""

    def cost(call: Call, load: Load) -> Cost:
        weights = sum(call.weight_bytes.values())
        return Cost(flops * elements(call.outs[0], load), weights, 0.0, call.act(load))

    return cost
