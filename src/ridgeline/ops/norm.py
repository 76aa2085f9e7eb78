"""rms_norm, add_rms_norm and layer_norm, over whole rows or over each head of a row."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ridgeline.ops.spec import Array, Case, TensorType, op, per_element


def _cases(rng: np.random.Generator) -> Iterable[Case]:
    for rows, n, width in ((1, 576, 0), (3, 640, 0), (7, 240, 80), (2, 512, 128)):
        x = rng.standard_normal((rows, n), dtype=np.float32)
        w = rng.standard_normal(width or n, dtype=np.float32)
        yield Case(f"{rows}x{n}/{width}", {"x": x, "w": w}, {"eps": 1e-5, "width": width})


@op("x:act w:weight", shape=lambda x, w, eps, width=0: x, cost=per_element(4), cases=_cases)
def rms_norm(x: Array, w: Array, *, eps: float, width: int = 0) -> Array:
    """x / rms(x) * w over rows [T, n], or over each run of `width` columns (QK-norm). Zhang & Sennrich 2019."""
    width = width or x.shape[1]
    rows = x.reshape(len(x), x.shape[1] // width, width)
    scale = 1 / np.sqrt(np.mean(np.square(rows), axis=2, keepdims=True) + np.float32(eps))
    y: Array = (rows * scale * w).astype(np.float32)
    return y.reshape(x.shape)


def _add_cases(rng: np.random.Generator) -> Iterable[Case]:
    for rows, n in ((1, 576), (5, 640), (3, 96)):
        x, y = rng.standard_normal((2, rows, n), dtype=np.float32)
        yield Case(f"{rows}x{n}", {"x": x, "y": y, "w": rng.standard_normal(n, dtype=np.float32)}, {"eps": 1e-6})


@op("x:act y:act w:weight", shape=lambda x, y, w, eps: (x, x), cost=per_element(5), cases=_add_cases)
def add_rms_norm(x: Array, y: Array, w: Array, *, eps: float) -> tuple[Array, Array]:
    """(x + y, rms_norm(x + y)): the residual and its norm in one pass over the row."""
    total = x + y
    return total, rms_norm.spec.meaning(total, w, eps=eps)


def _layer_cases(rng: np.random.Generator) -> Iterable[Case]:
    for rows, n in ((1, 576), (4, 100)):
        x = rng.standard_normal((rows, n), dtype=np.float32)
        w, b = rng.standard_normal((2, n), dtype=np.float32)
        yield Case(f"{rows}x{n}", {"x": x, "w": w, "b": b}, {"eps": 1e-5})


@op(
    "x:act w:weight b:weight?",
    shape=lambda x, w, b=None, eps=0.0: TensorType(x.shape),
    cost=per_element(7),
    cases=_layer_cases,
)
def layer_norm(x: Array, w: Array, b: Array | None = None, *, eps: float) -> Array:
    """(x - mean) / std * w + b over rows [T, n]. Ba et al. 2016."""
    centred = x - x.mean(axis=1, keepdims=True)
    y: Array = centred / np.sqrt(np.mean(np.square(centred), axis=1, keepdims=True) + np.float32(eps)) * w
    return (y if b is None else y + b).astype(np.float32)
