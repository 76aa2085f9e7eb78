"""linear and quantize_act: matrix products over weights of any format.

The weight's format says how its bytes unpack; the meaning here works on unpacked float32. Rows are computed one by
one, so that a row's result never depends on how many rows share the step (invariant 1).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ridgeline.ops.attention import round_bf16
from ridgeline.ops.spec import (
    INT8_GROUPS,
    TERM_RATIO,
    TWO_TERMS,
    Array,
    Call,
    Case,
    Cost,
    Load,
    TensorType,
    elements,
    groups_of,
    op,
)


@dataclass(frozen=True)
class QuantizedRows:
    """Activations of an int8 type: q int8 [T, K'] with K' = K padded to whole groups, scale float32 [T, groups].
    Of two terms the second comes after the first, in q [T, 2 K'] and scale [T, 2 groups]."""

    q: Array
    scale: Array
    columns: int
    dtype: str = "i8g32"

    def __len__(self) -> int:
        return len(self.q)

    @property
    def shape(self) -> tuple[int, int]:
        """(T, K)."""
        return len(self.q), self.columns

    def __getitem__(self, at: slice) -> QuantizedRows:
        """Some of the rows."""
        return QuantizedRows(self.q[at], self.scale[at], self.columns, self.dtype)

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return int(self.q.shape[1] // self.scale.shape[1])

    def float32(self) -> Array:
        """The rows as float32 [T, K]."""
        groups = self.q.reshape(*self.scale.shape, self.group).astype(np.float32) * self.scale[:, :, None]
        values: Array = groups.reshape(self.q.shape)
        if self.dtype in TWO_TERMS:
            first, second = np.split(values, 2, axis=1)
            values = first + second
        return values[:, : self.columns]


def _quantize_cases(rng: np.random.Generator) -> Iterable[Case]:
    for rows, k in ((1, 576), (3, 640), (7, 80), (5, 32)):
        yield Case(f"{rows}x{k}", {"x": rng.standard_normal((rows, k), dtype=np.float32)})
    yield Case("zeros", {"x": np.zeros((2, 64), np.float32)})
    for dtype in (*INT8_GROUPS, "bf16"):
        for rows, k in ((1, 576), (3, 640), (2, 33)):
            x = rng.standard_normal((rows, k), dtype=np.float32)
            yield Case(f"{rows}x{k} {dtype}", {"x": x}, {"dtype": dtype})
    for dtype in (*INT8_GROUPS, "bf16", "f32"):
        x = rng.standard_normal((3, 80), dtype=np.float32)
        x[1, :40] *= np.float32(0.1)
        yield Case(f"3x80 {dtype} sparse", {"x": x}, {"dtype": dtype, "threshold": 0.5})


@op(
    "x:act",
    shape=lambda x, dtype="i8g32", threshold=0.0: TensorType(x.shape, dtype),
    cost=lambda call, load: Cost(4.0 * elements(call.outs[0], load), 0.0, 0.0, call.act(load)),
    cases=_quantize_cases,
    tolerance=1e-2,  # a value on a rounding edge may land one step (1/127 of its group's maximum) away
)
def quantize_act(x: Array, *, dtype: str = "i8g32", threshold: float = 0.0) -> QuantizedRows | Array:
    """Round rows [T, K] to `dtype`, half to even; values nearer to 0 than `threshold` become 0 first.

    int8 types have one scale = max|x| / 127 for each group of 32, 64 or 128 columns ("i8g32", ...) or for the row
    ("i8"); columns that pad the last group are 0. In a type of two terms the second rounds what the first leaves,
    with scales of a TERM_RATIOth.
    "bf16" rows are float32 arrays here, of values that bf16 has; "f32" rows are only cut off at the threshold.
    """
    if threshold > 0:
        x = np.where(np.abs(x) < np.float32(threshold), np.float32(0), x)
    if dtype == "f32":
        return x
    if dtype == "bf16":
        return round_bf16(x)
    if dtype in TWO_TERMS:
        first = _round(x, dtype[:-2])
        second = _round(x - first.float32(), dtype[:-2], first.scale / np.float32(TERM_RATIO))
        q = np.concatenate([first.q, second.q], axis=1)
        return QuantizedRows(q, np.concatenate([first.scale, second.scale], axis=1), x.shape[1], dtype)
    return _round(x, dtype)


def _round(x: Array, dtype: str, scale: Array | None = None) -> QuantizedRows:
    rows, k = x.shape
    groups, group = groups_of(dtype, k)
    padded = np.zeros((rows, groups * group), np.float32)
    padded[:, :k] = x
    split = padded.reshape(rows, groups, group)
    if scale is None:
        scale = (np.abs(split).max(axis=2) / np.float32(127)).astype(np.float32)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    q = np.rint(split * inverse[:, :, None]).astype(np.int8)
    return QuantizedRows(q.reshape(rows, groups * group), scale, k, dtype)


def _linear_cost(call: Call, load: Load) -> Cost:
    n, k = call.ins["w"].shape
    rows = load.size(call.outs[0].shape[0])
    terms = 2 if call.ins["x"].dtype in TWO_TERMS else 1
    return Cost(2.0 * terms * rows * n * k, sum(call.weight_bytes.values()), 0.0, call.act(load))


def _linear_cases(rng: np.random.Generator) -> Iterable[Case]:
    for rows, n, k in ((1, 576, 576), (2, 192, 576), (7, 100, 640), (17, 33, 96), (64, 64, 32)):
        x = rng.standard_normal((rows, k), dtype=np.float32)
        w = rng.standard_normal((n, k), dtype=np.float32)
        yield Case(f"{rows}x{n}x{k}", {"x": x, "w": w})
        yield Case(f"{rows}x{n}x{k}+bias", {"x": x, "w": w, "bias": rng.standard_normal(n, dtype=np.float32)})
    for dtype in (*INT8_GROUPS, "bf16"):
        for rows, n, k in ((1, 192, 576), (7, 100, 640), (3, 48, 80)):
            x = quantize_act(rng.standard_normal((rows, k), dtype=np.float32), dtype=dtype)
            yield Case(f"{rows}x{n}x{k} {dtype}", {"x": x, "w": rng.standard_normal((n, k), dtype=np.float32)})


@op(
    "x:act w:weight bias:weight?",
    shape=lambda x, w, bias=None: TensorType((x.shape[0], w.shape[0])),
    cost=_linear_cost,
    cases=_linear_cases,
    tolerance=1e-5,
)
def linear(x: Array | QuantizedRows, w: Array, bias: Array | None = None) -> Array:
    """y[T, N] = x[T, K] · w[N, K]^T + bias[N], float32; x may be rows that quantize_act made."""
    rows = x.float32() if isinstance(x, QuantizedRows) else x
    y = np.empty((len(rows), len(w)), np.float32)
    for i, row in enumerate(rows):
        np.dot(w, np.ascontiguousarray(row), out=y[i])
    return y if bias is None else y + bias
