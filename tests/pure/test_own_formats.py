"""Formats of our own, whose definition is the loop written out here: on random bytes, at their bounds, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.errors import Unsupported
from ridgeline.program import cost
from ridgeline.program.ir import Weight
from ridgeline.quant.format import FORMATS, row_bytes
from ridgeline.weights.load import _columns
from ridgeline.weights.source import RandomSource, Raw

OWN = {name: fmt for name, fmt in FORMATS.items() if fmt.ggml_type is None}


def f16(raw):
    return np.float32(raw[:2].view(np.float16)[0])


def meaning(name, raw, k):
    """One row, one weight at a time."""
    if name == "int8":
        scale = raw[:4].copy().view(np.float32)[0]
        return [np.float32(q) * scale for q in raw[4:].view(np.int8)]
    group, values = int(name.rpartition("_g")[2]), []
    for block in raw.reshape(k // group, -1):
        scale = f16(block)
        for i in range(group):
            if name.startswith("int8"):
                values.append(np.float32(block[2:].view(np.int8)[i]) * scale)
                continue
            nibbles = block[4 if name.startswith("u") else 2 :]
            n = int(nibbles[i % (group // 2)]) >> (4 * (i >= group // 2)) & 15
            values.append(np.float32(n) * scale + f16(block[2:4]) if name[0] == "u" else np.float32(n - 8) * scale)
    return values


@pytest.mark.parametrize("name", OWN)
@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 3), blocks=st.integers(1, 3), seed=st.integers(0, 1 << 20))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_unpacking_is_the_definition(name, rows, blocks, seed):
    fmt = OWN[name]
    k = blocks * fmt.block if fmt.block > 1 else 7 * blocks
    raw = np.random.default_rng(seed).integers(0, 256, (rows, row_bytes(fmt, k)), np.uint8)
    expected = np.array([meaning(name, row, k) for row in raw], np.float32)
    np.testing.assert_array_equal(
        fmt.unpack(raw).view(np.uint32) | nan(expected), expected.view(np.uint32) | nan(expected)
    )


def nan(x):
    """All ones where x is nan: payloads do not matter."""
    return np.where(np.isnan(x), np.uint32(0xFFFFFFFF), np.uint32(0))


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("scale", [1e-30, 1e-4, 0.02, 1.0, 300.0])
def test_packing_rounds_to_the_nearest_step(name, scale):
    """At most half a step away, but that a scale in float16 is itself rounded (and is 0 below 3e-8)."""
    fmt, rng = OWN[name], np.random.default_rng(3)
    x = (rng.standard_normal((17, 256)) * scale).astype(np.float32)
    x[0], x[1], x[2, :128] = 0, scale, -scale
    got = fmt.unpack(fmt.pack(x))
    blocks = x.reshape(17, -1, fmt.block if fmt.block > 1 else 256)
    wide = blocks.max(2) - blocks.min(2) if name[0] == "u" else np.abs(blocks).max(2)
    steps = {"int8": wide / 127, "int4": wide / 8, "uint4": wide / 15}[name.split("_")[0]]
    # at 7 in a signed nibble the far end is a whole step from 8
    bound = (
        steps[:, :, None] * (1.01 if name.startswith("int4") else 0.51)
        + np.abs(blocks) * 2e-3
        + 4e-6 * (name != "int8")
    )
    assert (np.abs(got.reshape(blocks.shape) - blocks) <= bound).all()
    assert not got[0].any()


def test_int8_is_symmetric_and_keeps_the_largest():
    x = np.array([[-3.0, 1.5, 0.0, 3.0], [1e-44, -1e-44, 0, 1e-42], [0, 0, 0, 0]], np.float32)
    raw = OWN["int8"].pack(x)
    assert raw.shape == (3, 8)
    q = raw[:, 4:].view(np.int8)
    assert q[0].tolist() == [-127, 64, 0, 127] and q.min() >= -127 and not q[2].any()
    scales = raw[:, :4].copy().view(np.float32)[:, 0]
    assert scales[0] == np.float32(3) / np.float32(127) and scales[2] == 0
    assert np.isfinite(OWN["int8"].unpack(raw)).all()


def test_sizes():
    sizes = {
        "int8": 4 + 640,
        "int8_g128": 5 * 130,
        "int4_g64": 340,
        "int4_g128": 330,
        "uint4_g64": 360,
        "uint4_g128": 340,
    }
    assert {name: row_bytes(fmt, 640) for name, fmt in OWN.items()} == sizes
    assert {name: cost.weight_nbytes(Weight("w", (3, 640), ("", ""), name)) for name in OWN} == {
        name: 3 * size for name, size in sizes.items()
    }
    assert row_bytes(OWN["int8"], 33) == 37


@pytest.mark.parametrize(
    ("name", "k", "use"),
    [("int4_g128", 576, "int4_g64, int8"), ("uint4_g128", 576, "uint4_g64, int8"), ("int8_g128", 576, "int8"),
     ("int4_g64", 80, "int8"), ("q4_0", 80, "int8")],
)  # fmt: skip
def test_rows_that_blocks_do_not_divide_name_what_to_use(name, k, use):
    with pytest.raises(Unsupported, match=rf"row of {k} .*\(use {use}, f16, bf16\)"):
        row_bytes(FORMATS[name], k)


@pytest.mark.parametrize("size", [0, 3])
def test_a_row_shorter_than_its_header_is_refused(size):
    with pytest.raises(Unsupported, match="int8"):
        OWN["int8"].unpack(np.zeros((2, size), np.uint8))


def test_empty_and_unaligned_rows():
    fmt = OWN["int8"]
    raw = fmt.pack(np.random.default_rng(0).standard_normal((5, 9)).astype(np.float32))
    shifted = np.frombuffer(b"\0" + raw.tobytes(), np.uint8, offset=1).reshape(raw.shape)
    assert np.array_equal(fmt.unpack(shifted), fmt.unpack(raw)) and fmt.unpack(raw[:0]).shape == (0, 9)


def test_columns_keep_a_rows_scale():
    whole = RandomSource({"w": (6, 64)}, "int8").read("w")
    cut = _columns(whole, 16, 48)
    assert cut.data.shape == (6, 4 + 32) and np.array_equal(cut.float32(), whole.float32()[:, 16:48])
    assert isinstance(cut, Raw) and cut.shape == (6, 32)
