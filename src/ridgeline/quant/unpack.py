"""Packed blocks to float32: the plain formats and the blocks of 32 weights.

Each function takes uint8 [n, block_bytes] in GGUF's block layout and returns float32 [n, block], multiplying and
adding in the order that defines the format, so that results are exact to the bit. They know nothing of tensors,
names or files; `format.py` holds the table, `kquants.py` the blocks of 256. Like the files, this code is
little-endian.
"""

from __future__ import annotations

import numpy as np

from ridgeline.quant.pack import F32, U8, U32

# The 16 values of the non-linear 4-bit formats, as ggml defines them.
IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def f32(blocks: U8) -> F32:
    return np.require(blocks.view(np.float32), np.float32, ["A"])


def f16(blocks: U8) -> F32:
    return blocks.view(np.float16).astype(np.float32)


def bf16(blocks: U8) -> F32:
    bits: U32 = blocks.view(np.uint16).astype(np.uint32)
    bits <<= np.uint32(16)
    return bits.view(np.float32)


def int8(rows: U8) -> F32:
    """Whole rows: [scale f32][K int8]."""
    w = rows[:, 4:].view(np.int8).astype(np.float32)
    w *= np.ascontiguousarray(rows[:, :4]).view(np.float32)
    return w


def q8_0(blocks: U8) -> F32:
    w = blocks[:, 2:].view(np.int8).astype(np.float32)
    w *= f16(blocks[:, :2])
    return w


def q4_0(blocks: U8) -> F32:
    w = nibbles(blocks[:, 2:]).astype(np.float32)
    w -= np.float32(8)
    w *= f16(blocks[:, :2])
    return w


def q4_1(blocks: U8) -> F32:
    w = nibbles(blocks[:, 4:]).astype(np.float32)
    w *= f16(blocks[:, :2])
    w += f16(blocks[:, 2:4])
    return w


def q5_0(blocks: U8) -> F32:
    """[d f16][4 bytes of fifth bits][16 bytes]: w = d * (q - 16)."""
    w = _fives(blocks[:, 6:], blocks[:, 2:6])
    w -= np.float32(16)
    w *= f16(blocks[:, :2])
    return w


def q5_1(blocks: U8) -> F32:
    """[d f16][m f16][4 bytes of fifth bits][16 bytes]: w = d * q + m."""
    w = _fives(blocks[:, 8:], blocks[:, 4:8])
    w *= f16(blocks[:, :2])
    w += f16(blocks[:, 2:4])
    return w


def iq4_nl(blocks: U8) -> F32:
    """[d f16][16 bytes]: w = d * IQ4_VALUES[q]."""
    w: F32 = IQ4_VALUES.take(nibbles(blocks[:, 2:]))
    w *= f16(blocks[:, :2])
    return w


def fields(packed: U8, width: int, bits: int) -> U8:
    """uint8 [n, bytes] to [n, bytes // width, 8 // bits, width]: each run of `width` bytes gives its lowest
    `bits` first, then the next."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    split: U8 = packed.reshape(len(packed), -1, 1, width) >> shifts
    split &= np.uint8((1 << bits) - 1)
    return split


def nibbles(packed: U8) -> U8:
    """uint8 [n, half] to [n, 2 * half] in 0..15: low halves are the first weights, high halves the last."""
    half = packed.shape[1]
    return fields(packed, half, 4).reshape(-1, 2 * half)


def _fives(low: U8, fifth: U8) -> F32:
    """Nibbles [n, 16] and a bit each [n, 4] to float32 [n, 32] in 0..31."""
    q = np.unpackbits(fifth, axis=1, bitorder="little")
    q <<= np.uint8(4)
    q |= nibbles(low)
    return q.astype(np.float32)
