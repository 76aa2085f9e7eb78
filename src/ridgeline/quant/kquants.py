"""Packed blocks of 256 weights to float32: the K-quants and iq4_xs.

A block is split into groups of 16 or 32 weights, each with a small integer scale (and minimum) of its own under one
half-precision scale of the block. Each function takes uint8 [n, block_bytes] and returns float32 [n, 256], in the
order of operations that defines the format. There are no packers: choosing good group scales is a search.
"""

from __future__ import annotations

import numpy as np

from ridgeline.quant.pack import F32, U8
from ridgeline.quant.unpack import IQ4_VALUES, f16, fields

WEIGHTS = 256  # in a block


def q2_k(blocks: U8) -> F32:
    """[16 scale, minimum nibbles][64 bytes of 2 bits][d f16][dmin f16]: w = d * scale * q - dmin * minimum."""
    scales, d, dmin = blocks[:, :16], f16(blocks[:, 80:82]), f16(blocks[:, 82:84])
    q = fields(blocks[:, 16:80], 32, 2)
    return _affine(q, d * (scales & np.uint8(15)), dmin * (scales >> np.uint8(4)))


def q3_k(blocks: U8) -> F32:
    """[32 bytes of third bits][64 bytes of 2 bits][16 scales of 6 bits][d f16]: w = d * (scale - 32) * (q - 4)."""
    q = fields(blocks[:, 32:96], 32, 2)
    q |= (fields(blocks[:, :32], 32, 1) << np.uint8(2)).reshape(q.shape)
    scales = fields(blocks[:, 96:104], 8, 4).reshape(-1, 16)
    scales |= fields(blocks[:, 104:108], 4, 2).reshape(-1, 16) << np.uint8(4)
    return _scaled(q, f16(blocks[:, 108:110]) * _less(scales, 32), 4)


def q4_k(blocks: U8) -> F32:
    """[d f16][dmin f16][8 scales and minima of 6 bits][128 bytes of 4 bits]: w = d * scale * q - dmin * minimum."""
    scales, minima = _scales_and_minima(blocks[:, :16])
    return _affine(fields(blocks[:, 16:144], 32, 4), scales, minima)


def q5_k(blocks: U8) -> F32:
    """As q4_k, with [32 bytes of fifth bits] before the nibbles."""
    scales, minima = _scales_and_minima(blocks[:, :16])
    q = fields(blocks[:, 48:176], 32, 4)
    q |= (fields(blocks[:, 16:48], 32, 1) << np.uint8(4)).reshape(q.shape)
    return _affine(q, scales, minima)


def q6_k(blocks: U8) -> F32:
    """[128 bytes of 4 bits][64 bytes of 2 more][16 scales int8][d f16]: w = d * scale * (q - 32)."""
    q = fields(blocks[:, :128], 64, 4)
    q |= (fields(blocks[:, 128:192], 32, 2) << np.uint8(4)).reshape(q.shape)
    return _scaled(q, f16(blocks[:, 208:210]) * blocks[:, 192:208].view(np.int8), 32)


def q8_k(blocks: U8) -> F32:
    """[d f32][256 int8][16 sums of groups int16, which only a dot product needs]: w = d * q."""
    w = blocks[:, 4:260].view(np.int8).astype(np.float32)
    w *= blocks[:, :4].view(np.float32)
    return w


def iq4_xs(blocks: U8) -> F32:
    """[d f16][8 x 2 high, then 8 x 4 low bits of scales][128 bytes of 4 bits]: w = d * (scale - 32) * IQ4_VALUES[q]."""
    high = blocks[:, 2:4].view(np.uint16) >> np.arange(0, 16, 2, dtype=np.uint16)
    scales = (high.astype(np.uint8) & np.uint8(3)) << np.uint8(4)
    scales |= fields(blocks[:, 4:8], 1, 4).reshape(-1, 8)
    w: F32 = IQ4_VALUES.take(fields(blocks[:, 8:136], 16, 4)).reshape(-1, 8, 32)
    w *= (f16(blocks[:, :2]) * _less(scales, 32))[:, :, None]
    return w.reshape(-1, WEIGHTS)


def _scales_and_minima(head: U8) -> tuple[F32, F32]:
    """[d f16][dmin f16][12 bytes] to float32 [n, 8] scales and [n, 8] minima, times d and dmin.

    Bytes 0..3 and 4..7 hold the first four scales and minima in 6 bits; their top 2 bits belong to the last four,
    whose low halves are bytes 8..11: scales low, minima high.
    """
    early = head[:, 4:12].reshape(-1, 2, 4)
    late = (early >> np.uint8(2)) & np.uint8(0x30)
    late |= fields(head[:, 12:16], 4, 4).reshape(-1, 2, 4)
    both = np.concatenate([early & np.uint8(0x3F), late], axis=2)
    return f16(head[:, :2]) * both[:, 0], f16(head[:, 2:4]) * both[:, 1]


def _less(scales: U8, offset: int) -> F32:
    w = scales.astype(np.float32)
    w -= np.float32(offset)
    return w


def _scaled(q: U8, scales: F32, offset: int) -> F32:
    """scale * (q - offset), each scale [n, groups] over its run of the 256 q."""
    w = _less(q, offset).reshape(len(q), scales.shape[1], -1)
    w *= scales[:, :, None]
    return w.reshape(-1, WEIGHTS)


def _affine(q: U8, scales: F32, minima: F32) -> F32:
    """scale * q - minimum, each [n, groups] over its run of the 256 q."""
    w = q.astype(np.float32).reshape(len(q), scales.shape[1], -1)
    w *= scales[:, :, None]
    w -= minima[:, :, None]
    return w.reshape(-1, WEIGHTS)
