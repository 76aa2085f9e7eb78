"""Elementwise ops over [T, n] rows: residual adds, gates, activations, softcap."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ridgeline.ops.spec import Array, Case, TensorType, op, per_element


def _same(x: TensorType, *_: Any, **__: Any) -> TensorType:
    return TensorType(x.shape)


def _cases(names: str, **attrs: float) -> Callable[[np.random.Generator], Iterable[Case]]:
    def cases(rng: np.random.Generator) -> Iterable[Case]:
        for rows, n in ((1, 576), (3, 100), (7, 1536)):
            arrays = {name: 3 * rng.standard_normal((rows, n), dtype=np.float32) for name in names.split()}
            yield Case(f"{rows}x{n}", arrays, attrs)

    return cases


@op("x:act y:act", shape=_same, cost=per_element(1), cases=_cases("x y"), tolerance=0.0)
def add(x: Array, y: Array) -> Array:
    """x + y."""
    total: Array = x + y
    return total


@op("x:act y:act", shape=_same, cost=per_element(1), cases=_cases("x y"), tolerance=0.0)
def mul(x: Array, y: Array) -> Array:
    """x * y."""
    product: Array = x * y
    return product


@op("gate:act up:act", shape=_same, cost=per_element(6), cases=_cases("gate up"))
def silu_mul(gate: Array, up: Array) -> Array:
    """gate * sigmoid(gate) * up: SwiGLU (Shazeer 2020)."""
    with np.errstate(over="ignore"):
        y: Array = gate / (1 + np.exp(-gate)) * up
    return y.astype(np.float32)


def _gelu_tanh(x: Array) -> Array:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
    y: Array = 0.5 * x * (1 + np.tanh(inner))
    return y.astype(np.float32)


@op("gate:act up:act", shape=_same, cost=per_element(10), cases=_cases("gate up"))
def gelu_mul(gate: Array, up: Array) -> Array:
    """gelu(gate) * up with the tanh approximation: GeGLU (Shazeer 2020)."""
    gated: Array = _gelu_tanh(gate) * up
    return gated


@op("x:act", shape=_same, cost=per_element(9), cases=_cases("x", exact=False))
def gelu(x: Array, *, exact: bool = False) -> Array:
    """GELU, by its tanh approximation, or `exact` by the error function (Hendrycks & Gimpel 2016)."""
    if not exact:
        return _gelu_tanh(x)
    erf = np.vectorize(math.erf, otypes=[np.float64])
    y: Array = 0.5 * x * (1 + erf(x / math.sqrt(2)))
    return y.astype(np.float32)


@op("x:act", shape=_same, cost=per_element(2), cases=_cases("x"))
def relu2(x: Array) -> Array:
    """max(x, 0)^2 (So et al. 2021)."""
    squared: Array = np.square(np.maximum(x, 0))
    return squared


@op("x:act", shape=_same, cost=per_element(3), cases=_cases("x", cap=2.0))
def softcap(x: Array, *, cap: float) -> Array:
    """cap * tanh(x / cap) (Gemma 2)."""
    y: Array = np.float32(cap) * np.tanh(x / np.float32(cap))
    return y.astype(np.float32)
