"""Packed weights hold every value exactly, and linears over them agree with the oracle and with themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness import ISAS, Bf16, OneOp, backend, run_case, small

from ridgeline.backends.base import MULTIPLIES
from ridgeline.backends.cpu import _native
from ridgeline.backends.cpu.backend import CPU
from ridgeline.backends.cpu.panels import Panels
from ridgeline.ops.linear import linear, quantize_act
from ridgeline.ops.spec import OPS, Case
from ridgeline.program.ir import Weight
from ridgeline.quant.format import FORMATS, row_bytes
from ridgeline.weights.source import Raw

POOL = _native.Pool(2)
HELD = list(CPU.held_as)
PACKED = [f for f in HELD if FORMATS[f].pack_blocks]


def plain(fmt: str, rows: int, k: int) -> Raw:
    x = np.random.default_rng(rows * k).standard_normal((rows, k), dtype=np.float32)
    return Raw(fmt, (rows, k), FORMATS[fmt].pack(x))


def hold(raw: Raw) -> _native.PackedWeight:
    w = Weight("w", raw.shape, ("", ""), CPU.held_as[raw.format])
    return Panels(CPU(threads=2).pool, CPU.held_as).load([w], [], lambda w: raw, None)[0][0]


def unpacked(w: _native.PackedWeight, rows: int, k: int) -> np.ndarray:
    out = np.empty((rows, k), np.float32)
    for r in range(rows):
        w.unpack(r, out[r])
    return out


def rounded(x: np.ndarray, rows: str) -> Any:
    """Rows as an operand of type `rows`."""
    done = quantize_act(x, dtype=rows)
    return done.view(Bf16) if rows == "bf16" else done


@pytest.mark.parametrize("fmt", HELD)
@pytest.mark.parametrize("rows", [1, 31, 33, 64])
def test_held_values_are_exact(fmt: str, rows: int) -> None:
    """Any bit pattern, inf and NaN too."""
    f = FORMATS[fmt]
    for k in (4, 96, 100) if f.row_header else (1, 7, 96) if f.block == 1 else (f.block, 3 * f.block):
        raw = np.random.default_rng(rows * k).integers(0, 256, (rows, row_bytes(f, k)), np.uint8)
        raw = Raw(fmt, (rows, k), raw)
        np.testing.assert_array_equal(unpacked(hold(raw), rows, k), raw.float32())


def test_every_format_is_held() -> None:
    assert CPU.held_as.keys() == FORMATS.keys()


def test_bad_weights_are_refused() -> None:
    def pack(fmt: str, raw: np.ndarray, rows: int, k: int) -> _native.PackedWeight:
        return _native.PackedWeight(POOL, fmt, raw, rows, k, _native.Memory(4096), 0)

    raw = np.zeros(18 * 4, np.uint8)
    for fmt, rows, k in (("q4_0", 4, 33), ("q4_0", 4, 64), ("q4_0", 0, 32), ("q4_0", -4, -32), ("iq1_s", 4, 32)):
        with pytest.raises(ValueError, match="fit|format"):
            pack(fmt, raw, rows, k)


@pytest.mark.parametrize("fmt", HELD)
def test_linear_and_embedding_of_stored_bytes(fmt: str) -> None:
    """Against the oracle, for every kind of rows. The operand is declared as held, and handed over as stored."""
    raw = small(fmt, 45, 2 * max(FORMATS[fmt].block, 32)) if FORMATS[fmt].block > 1 else plain(fmt, 45, 64)
    values, held = raw.float32(), CPU.held_as[fmt]
    rng = np.random.default_rng(5)
    x = rng.standard_normal((7, values.shape[1]), dtype=np.float32)
    ids = rng.integers(0, 45, 7).astype(np.int32)
    cases = [("linear", "w", {"x": x, "w": values}), ("embedding", "table", {"ids": ids, "table": values})]
    for rows in CPU.multiplies.get(held, ()):
        cases.append(("linear", "w", {"x": rounded(x, rows), "w": values}))
    for op, name, operands in cases:
        one = OneOp(op, Case("", operands), backend(2), held, **{name: raw})
        (out,), exact = one.run(), OPS[op].meaning(**operands)
        assert np.abs(out - exact).max() <= (1e-5 * np.abs(exact).max() if op == "linear" else 0)


ROWS = [(f, rows) for f in PACKED for rows in ("f32", *CPU.multiplies.get(CPU.held_as[f], ()))]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("fmt", "rows"), ROWS)
def test_linear_formats(fmt: str, rows: str, isa: str) -> None:
    """Against the oracle, and every row the same bits at every M and thread count, also in passes over rows."""
    rng = np.random.default_rng(11)
    k, n, m = (640 if FORMATS[fmt].block > 32 else 160), 100, 512
    raw_x = rng.standard_normal((m, k), dtype=np.float32)
    w = FORMATS[fmt].unpack(FORMATS[fmt].pack(rng.standard_normal((n, k), dtype=np.float32)))
    bias = rng.standard_normal(n, dtype=np.float32)

    def act(at: slice) -> Any:
        return raw_x[at] if rows == "f32" else rounded(raw_x[at], rows)

    def run(at: slice, threads: int) -> np.ndarray:
        return run_case("linear", Case("", {"x": act(at), "w": w, "bias": bias}), backend(threads, isa), fmt)[0]

    whole = run(slice(None), 1)
    exact = linear(act(slice(None)), w, bias)
    assert np.abs(whole - exact).max() < 1e-5 * np.abs(exact).max()
    for count in (*range(1, 34), 128, 200):
        assert np.array_equal(run(slice(3, 3 + count), 1 + count % 3), whole[3 : 3 + count]), count


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("fmt", "rows"), [(fmt, rows) for fmt, rows in ROWS if rows.startswith("i8")])
def test_sums_of_the_largest_codes_overflow_nowhere(fmt: str, rows: str, isa: str) -> None:
    w = np.ones((40, 768), np.float32)
    w[:, :: FORMATS[fmt].block] = -1  # or a format with minima has codes of 0 alone
    x = np.outer([1, -1, 1, -1, 1, -1, 1], np.ones(768)).astype(np.float32)
    w, x = FORMATS[fmt].unpack(FORMATS[fmt].pack(w)), rounded(x, rows)
    (out,) = run_case("linear", Case("", {"x": x, "w": w}), backend(1, isa), fmt)
    exact = linear(x, w)
    assert np.abs(out - exact).max() < 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("isa", ISAS)
def test_the_lowest_code_counts_as_it_is(isa: str) -> None:
    """No packing makes it, but files may hold it."""
    blocks = np.frombuffer(np.float16(0.5).tobytes() + bytes([0x80]) * 32, np.uint8)
    raw = Raw("q8_0", (40, 64), np.tile(blocks, (40, 2)))
    x = rounded(np.outer([1, -1, 1], np.ones(64)).astype(np.float32), "i8g32")
    (out,) = OneOp("linear", Case("", {"x": x, "w": raw.float32()}), backend(1, isa), CPU.held_as["q8_0"], w=raw).run()
    np.testing.assert_allclose(out, np.outer([1, -1, 1], np.full(40, -64 * 64.0)), rtol=1e-5)


def test_quantise_keeps_nan() -> None:
    x = np.ones((2, 64), np.float32)
    x[0, 40] = np.nan
    (rows,) = run_case("quantize_act", Case("", {"x": x}), backend())
    assert np.isnan(rows.scale[0, 1]) and rows.scale[0, 0] == np.float32(1 / 127)
    assert (rows.q[1] == 127).all()


def test_rows_are_chosen_as_on_the_oracles() -> None:
    """The order matters: the first type that a choice allows is taken."""
    for fmt, rows in MULTIPLIES.items():
        assert CPU.multiplies.get(CPU.held_as[fmt], rows) == rows
    assert {held for held in CPU.held_as.values() if held != "f32"} == CPU.multiplies.keys()
