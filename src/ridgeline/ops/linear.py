"""linear and quantize_act: matrix products over weights of any format.

The weight's format says how its bytes unpack; the meaning here works on unpacked float32. Rows are computed one by
one, so that a row's result never depends on how many rows share the step (invariant 1).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ridgeline.ops.spec import GROUP, Array, Call, Case, Cost, Load, TensorType, elements, op


@dataclass(frozen=True)
class QuantizedRows:
    """Activations of type i8g32: q int8 [T, K'] with K' = K padded to a multiple of 32, scale float32 [T, K'/32]."""

    q: Array
    scale: Array
    columns: int

    def float32(self) -> Array:
        """The rows as float32 [T, K]."""
        groups = self.q.reshape(*self.scale.shape, GROUP).astype(np.float32) * self.scale[:, :, None]
        return groups.reshape(self.q.shape)[:, : self.columns]


def _quantize_cases(rng: np.random.Generator) -> Iterable[Case]:
    for rows, k in ((1, 576), (3, 640), (7, 80), (5, 32)):
        yield Case(f"{rows}x{k}", {"x": rng.standard_normal((rows, k), dtype=np.float32)})
    yield Case("zeros", {"x": np.zeros((2, 64), np.float32)})


@op(
    "x:act",
    shape=lambda x: TensorType(x.shape, "i8g32"),
    cost=lambda call, load: Cost(4.0 * elements(call.outs[0], load), 0.0, 0.0, call.act(load)),
    cases=_quantize_cases,
    tolerance=1e-2,  # a value on a rounding edge may land one step (1/127 of its group's maximum) away
)
def quantize_act(x: Array) -> QuantizedRows:
    """Round rows [T, K] to int8 with one scale per group of 32 columns: scale = max|x| / 127, round half to even."""
    rows, k = x.shape
    groups = -(-k // GROUP)
    padded = np.zeros((rows, groups * GROUP), np.float32)
    padded[:, :k] = x
    padded = padded.reshape(rows, groups, GROUP)
    scale = (np.abs(padded).max(axis=2) / np.float32(127)).astype(np.float32)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    q = np.rint(padded * inverse[:, :, None]).astype(np.int8)
    return QuantizedRows(q.reshape(rows, groups * GROUP), scale, k)


def _linear_cost(call: Call, load: Load) -> Cost:
    n, k = call.ins["w"].shape
    rows = load.size(call.outs[0].shape[0])
    return Cost(2.0 * rows * n * k, sum(call.weight_bytes.values()), 0.0, call.act(load))


def _linear_cases(rng: np.random.Generator) -> Iterable[Case]:
    for rows, n, k in ((1, 576, 576), (2, 192, 576), (7, 100, 640), (17, 33, 96), (64, 64, 32)):
        x = rng.standard_normal((rows, k), dtype=np.float32)
        w = rng.standard_normal((n, k), dtype=np.float32)
        yield Case(f"{rows}x{n}x{k}", {"x": x, "w": w})
        yield Case(f"{rows}x{n}x{k}+bias", {"x": x, "w": w, "bias": rng.standard_normal(n, dtype=np.float32)})


@op(
    "x:act w:weight bias:weight?",
    shape=lambda x, w, bias=None: TensorType((x.shape[0], w.shape[0])),
    cost=_linear_cost,
    cases=_linear_cases,
    tolerance=1e-5,
)
def linear(x: Array | QuantizedRows, w: Array, bias: Array | None = None) -> Array:
    """y[T, N] = x[T, K] · w[N, K]^T + bias[N], float32."""
    rows = x.float32() if isinstance(x, QuantizedRows) else x
    y = np.empty((len(rows), len(w)), np.float32)
    for i, row in enumerate(rows):
        np.dot(w, np.ascontiguousarray(row), out=y[i])
    return y if bias is None else y + bias
