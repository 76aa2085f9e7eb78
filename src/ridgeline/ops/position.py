"""rotary and rope: the angles of a step, computed once, and their use on each layer's queries and keys."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ridgeline.ops.spec import Array, Case, TensorType, op, per_element


def _rotary_cases(rng: np.random.Generator) -> Iterable[Case]:
    inv = (1e4 ** -(np.arange(0, 64, 2, dtype=np.float64) / 64)).astype(np.float32)
    positions = np.array([[0, 1, 17, 4095, 8191]], np.int32)
    yield Case("5x32", {"positions": positions, "inv_freq": inv}, {"axis": 0, "scale": 1.0})


@op(
    "positions:field inv_freq:weight",
    shape=lambda positions, inv_freq, axis=0, scale=1.0: TensorType((positions.shape[1], 2 * inv_freq.shape[0])),
    cost=per_element(20),
    cases=_rotary_cases,
    tolerance=2e-5,
)
def rotary(positions: Array, inv_freq: Array, *, axis: int = 0, scale: float = 1.0) -> Array:
    """[T, 2h] = cos | sin of positions[axis] x inv_freq[h], times `scale` (YaRN's attention factor)."""
    angles = positions[axis].astype(np.float32)[:, None] * inv_freq[None, :]
    table: Array = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * np.float32(scale)
    return table.astype(np.float32)


def _rope_cases(rng: np.random.Generator) -> Iterable[Case]:
    for rows, heads, dim, half in ((1, 9, 64, 32), (5, 3, 80, 40), (3, 2, 64, 16)):
        x = rng.standard_normal((rows, heads * dim), dtype=np.float32)
        angles = rng.uniform(0, 6.28, (rows, half)).astype(np.float32)
        table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        for interleaved in (False, True):
            attrs = {"head_dim": dim, "interleaved": interleaved}
            yield Case(f"{rows}x{heads}x{dim}/{half}{'i' * interleaved}", {"x": x, "angles": table}, attrs)


@op(
    "x:act angles:act",
    shape=lambda x, angles, head_dim, interleaved=False: x,
    cost=per_element(3),
    cases=_rope_cases,
)
def rope(x: Array, angles: Array, *, head_dim: int, interleaved: bool = False) -> Array:
    """Rotate the first 2h columns of each head of x [T, heads * head_dim]; pairs are (i, i+h), or (2i, 2i+1)
    when interleaved. Su et al. 2021; `angles` comes from `rotary`."""
    half = angles.shape[1] // 2
    y = x.reshape(len(x), x.shape[1] // head_dim, head_dim).copy()
    cos, sin = angles[:, None, :half], angles[:, None, half:]
    first, second = slice(0, half), slice(half, 2 * half)
    if interleaved:
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    a, b = y[:, :, first].copy(), y[:, :, second].copy()
    y[:, :, first], y[:, :, second] = a * cos - b * sin, b * cos + a * sin
    rotated: Array = y.reshape(x.shape)
    return rotated
