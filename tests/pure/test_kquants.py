"""Blocks of 256 against loops written weight by weight from the format's definition, and what unpacking costs."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from ridgeline.quant.format import FORMATS, row_bytes

K_QUANTS = [name for name, fmt in FORMATS.items() if fmt.block == 256]
F = np.float32


def half(block, at):
    return F(block[at : at + 2].view(np.float16)[0])


def scale_and_minimum(block, j):
    """The 6-bit pair number j of a q4_k or q5_k block, whose 12 bytes start at 4."""
    at = block[4:16].tolist()
    if j < 4:
        return at[j] & 63, at[j + 4] & 63
    return at[j + 4] & 15 | at[j - 4] >> 6 << 4, at[j + 4] >> 4 | at[j] >> 6 << 4


def q2_k(block, i):
    pair = int(block[i // 16])
    q = block[16 + i // 128 * 32 + i % 32] >> i // 32 % 4 * 2 & 3
    return half(block, 80) * F(pair & 15) * F(q) - half(block, 82) * F(pair >> 4)


def q3_k(block, i):
    q = int(block[32 + i // 128 * 32 + i % 32]) >> i // 32 % 4 * 2 & 3
    q -= 0 if block[i % 32] >> i // 32 & 1 else 4
    j = i // 16
    scale = int(block[96 + j % 8]) >> j // 8 * 4 & 15 | (int(block[104 + j % 4]) >> j // 4 * 2 & 3) << 4
    return half(block, 108) * F(scale - 32) * F(q)


def q4_k(block, i):
    scale, minimum = scale_and_minimum(block, i // 32)
    q = block[16 + i // 64 * 32 + i % 32] >> i // 32 % 2 * 4 & 15
    return half(block, 0) * F(scale) * F(q) - half(block, 2) * F(minimum)


def q5_k(block, i):
    scale, minimum = scale_and_minimum(block, i // 32)
    q = block[48 + i // 64 * 32 + i % 32] >> i // 32 % 2 * 4 & 15 | (block[16 + i % 32] >> i // 32 & 1) << 4
    return half(block, 0) * F(scale) * F(q) - half(block, 2) * F(minimum)


def q6_k(block, i):
    low = block[i // 128 * 64 + i % 64] >> i // 64 % 2 * 4 & 15
    high = block[128 + i // 128 * 32 + i % 32] >> i // 32 % 4 * 2 & 3
    scale = block[192:208].view(np.int8)[i // 16]
    return half(block, 208) * F(scale) * F(int(low | high << 4) - 32)


def q8_k(block, i):
    return block[:4].view(F)[0] * F(block[4:260].view(np.int8)[i])


def iq4_xs(block, i):
    values = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
    j = i // 32
    low = int(block[4 + j // 2]) >> j % 2 * 4 & 15
    scale = low | (int(block[2:4].view(np.uint16)[0]) >> 2 * j & 3) << 4
    q = block[8 + j * 16 + i % 16] >> i // 16 % 2 * 4 & 15
    return half(block, 0) * F(scale - 32) * F(values[q])


LOOPS = {f.__name__: f for f in (q2_k, q3_k, q4_k, q5_k, q6_k, q8_k, iq4_xs)}


@pytest.mark.parametrize("name", K_QUANTS)
def test_unpack_equals_the_definition_weight_by_weight(name):
    fmt = FORMATS[name]
    raw = np.random.default_rng(0).integers(0, 256, (20, fmt.block_bytes), np.uint8)
    with np.errstate(all="ignore"):
        expected = np.array([[LOOPS[name](block, i) for i in range(256)] for block in raw], np.float32)
    got = fmt.unpack(raw)
    same = (got.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(got) & np.isnan(expected))
    assert same.all()


@pytest.mark.parametrize("name", FORMATS)
def test_a_large_tensor_takes_little_more_than_its_result(name):
    """Unpacked in pieces: equal to each row alone, and no temporary of the tensor's size."""
    fmt = FORMATS[name]
    raw = np.random.default_rng(1).integers(0, 256, (1000, row_bytes(fmt, 2560)), np.uint8)
    tracemalloc.start()
    w = fmt.unpack(raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < w.nbytes + (2 << 20)
    for row in (0, 499, 999):
        np.testing.assert_array_equal(w[row], fmt.unpack(raw[row : row + 1])[0])
