"""float32 blocks to packed bytes, rounded as ggml's reference quantisers round.

Each function takes float32 [n, block] and returns uint8 [n, block_bytes] in GGUF's block layout; q4_0, q4_1 and q8_0
take blocks of any even length. They know
nothing of tensors, names or files; `format.py` holds the table. Values are expected to be finite: the block
formats have no way to store inf or nan. Like the files, this code is little-endian.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U32 = npt.NDArray[np.uint32]
U8 = npt.NDArray[np.uint8]


def f32(x: F32) -> U8:
    return x.astype(np.float32, copy=False).view(np.uint8)


def f16(x: F32) -> U8:
    with np.errstate(over="ignore"):
        return x.astype(np.float16).view(np.uint8)


def bf16(x: F32) -> U8:
    """Round to nearest even; a nan stays a (quiet) nan instead of rounding up into inf."""
    bits = x.view(np.uint32)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded: U32 = np.where(nan, bits | np.uint32(0x00400000), bits + half)
    top: U32 = rounded >> np.uint32(16)
    return top.astype(np.uint16).view(np.uint8)


def int8(x: F32) -> U8:
    """Whole rows: [scale f32][K int8]: w = scale * q, with scale = max|x| / 127, halves rounded to even."""
    scale = np.abs(x).max(axis=1, keepdims=True, initial=0) / np.float32(127)
    q = np.rint(np.divide(x, scale, out=np.zeros_like(x), where=scale > 0))
    packed = np.clip(q, -127, 127).astype(np.int8)
    return np.concatenate([scale.view(np.uint8), packed.view(np.uint8)], axis=1)


def q8_0(x: F32) -> U8:
    """[d f16][32 int8]: d = max|x| / 127, halves rounded away from zero."""
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * _reciprocal(d)
    q = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))
    return np.concatenate([_half(d), q.astype(np.int8).view(np.uint8)], axis=1)


def q4_0(x: F32) -> U8:
    """[d f16][16 bytes]: w = d * (q - 8); d has the sign that sends the largest value to q = 0."""
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    d = largest / np.float32(-8)
    return np.concatenate([_half(d), _nibbles(x * _reciprocal(d) + np.float32(8.5))], axis=1)


def q4_1(x: F32) -> U8:
    """[d f16][m f16][16 bytes]: w = d * q + m, with m = min x and d = (max x - min x) / 15."""
    m = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - m) / np.float32(15)
    q = _nibbles((x - m) * _reciprocal(d) + np.float32(0.5))
    return np.concatenate([_half(d), _half(m), q], axis=1)


def q5_0(x: F32) -> U8:
    """[d f16][fifth bits][16 bytes]: w = d * (q - 16); d has the sign that sends the largest value to q = 0."""
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    d = largest / np.float32(-16)
    return np.concatenate([_half(d), *_fives(x * _reciprocal(d) + np.float32(16.5))], axis=1)


def q5_1(x: F32) -> U8:
    """[d f16][m f16][fifth bits][16 bytes]: w = d * q + m, with m = min x and d = (max x - min x) / 31."""
    m = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - m) / np.float32(31)
    fives = _fives((x - m) * _reciprocal(d) + np.float32(0.5))
    return np.concatenate([_half(d), _half(m), *fives], axis=1)


def _reciprocal(d: F32) -> F32:
    """1 / d, and 0 for a block of zeros."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse: F32 = np.where(d == 0, np.float32(0), np.float32(1) / d)
    return inverse


def _half(d: F32) -> U8:
    with np.errstate(over="ignore"):
        return d.astype(np.float16).view(np.uint8)


def _nibbles(shifted: F32) -> U8:
    """Truncate to 0..15; of n weights, j sits in the low half of byte j, j + n/2 in the high half."""
    return _paired(np.clip(shifted, 0, 15).astype(np.uint8))


def _fives(shifted: F32) -> tuple[U8, U8]:
    """Truncate to 0..31: the top bits, weight 0 lowest, then the rest as `_nibbles` has them."""
    q = np.clip(shifted, 0, 31).astype(np.uint8)
    return np.packbits(q >> np.uint8(4), axis=1, bitorder="little"), _paired(q & np.uint8(15))


def _paired(q: U8) -> U8:
    half = q.shape[1] // 2
    packed: U8 = q[:, :half] | (q[:, half:] << np.uint8(4))
    return packed
