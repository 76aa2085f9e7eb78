"""Packed weights hold every value exactly, and linears over them agree with the oracle and with themselves."""

from __future__ import annotations

import numpy as np
import pytest
from harness import ISAS, backend, run_case

from ridgeline.backends.cpu import _native
from ridgeline.ops.linear import linear, quantize_act
from ridgeline.ops.spec import Case
from ridgeline.quant.format import FORMATS

POOL = _native.Pool(2)
HELD = sorted(FORMATS)


def packed(fmt: str, rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Raw bytes whose every bit pattern may occur, and their float32 meaning."""
    rng = np.random.default_rng(rows * k)
    raw = rng.integers(0, 256, (rows, k // FORMATS[fmt].block * FORMATS[fmt].block_bytes), np.uint8)
    if FORMATS[fmt].block > 1:  # scales: any half but inf, NaN and those that 8 times would overflow
        blocks = raw.reshape(-1, FORMATS[fmt].block_bytes)
        blocks[:, 1] &= 0xEB
        blocks[:, 3] &= 0xEB if fmt == "q4_1" else 0xFF
    return raw, FORMATS[fmt].unpack(raw)


def pack(fmt: str, raw: np.ndarray, rows: int, k: int) -> _native.PackedWeight:
    memory = _native.Memory(_native.packed_bytes(fmt, rows, k))
    return _native.PackedWeight(POOL, fmt, raw.reshape(-1), rows, k, memory, 0)


@pytest.mark.parametrize("fmt", HELD)
@pytest.mark.parametrize("rows", [1, 31, 33, 64])
def test_unpack_is_exact(fmt: str, rows: int) -> None:
    for k in (32, 96) if FORMATS[fmt].block > 1 else (1, 7, 96):
        raw, values = packed(fmt, rows, k)
        w = pack(fmt, raw, rows, k)
        out = np.empty(k, np.float32)
        for r in range(rows):
            w.unpack(r, out)
            same = (out == values[r]) | (np.isnan(out) & np.isnan(values[r]))
            assert same.all(), (fmt, r)


def test_bad_weights_are_refused() -> None:
    raw = np.zeros(18 * 4, np.uint8)
    for fmt, rows, k in (("q4_0", 4, 33), ("q4_0", 4, 64), ("q4_0", 0, 32), ("q4_0", -4, -32), ("iq1_s", 4, 32)):
        with pytest.raises(ValueError, match="fit|format"):
            pack(fmt, raw, rows, k)
    raw[:2] = np.frombuffer(np.float16(9000).tobytes(), np.uint8)
    with pytest.raises(ValueError, match="scale"):
        pack("q4_0", raw, 4, 32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("fmt", "int8"), [(f, int8) for f in HELD for int8 in (False, True) if not int8 or FORMATS[f].block > 1]
)
def test_linear_formats(fmt: str, int8: bool, isa: str) -> None:
    """Against the oracle, and every row the same bits at every M and thread count."""
    rng = np.random.default_rng(11)
    k, n = 160, 100
    raw_x = rng.standard_normal((23, k), dtype=np.float32)
    w = FORMATS[fmt].unpack(FORMATS[fmt].pack(rng.standard_normal((n, k), dtype=np.float32)))
    bias = rng.standard_normal(n, dtype=np.float32)

    def run(rows: slice, threads: int) -> np.ndarray:
        x = quantize_act(raw_x[rows]) if int8 else raw_x[rows]
        return run_case("linear", Case("", {"x": x, "w": w, "bias": bias}), backend(threads, isa), fmt)[0]

    whole = run(slice(None), 1)
    exact = linear(quantize_act(raw_x) if int8 else raw_x, w, bias)
    assert np.abs(whole - exact).max() < 1e-5 * np.abs(exact).max()
    for m in range(1, 14):
        assert np.array_equal(run(slice(3, 3 + m), 1 + m % 3), whole[3 : 3 + m]), m


def test_quantise_keeps_nan() -> None:
    x = np.ones((2, 64), np.float32)
    x[0, 40] = np.nan
    (rows,) = run_case("quantize_act", Case("", {"x": x}), backend())
    assert np.isnan(rows.scale[0, 1]) and rows.scale[0, 0] == np.float32(1 / 127)
    assert (rows.q[1] == 127).all()
