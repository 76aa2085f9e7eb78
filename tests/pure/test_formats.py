"""Weight formats against the gguf package (their own reference), and random weights in every format."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ridgeline.errors import ModelFileError, Unsupported
from ridgeline.quant.format import FORMATS, get_format, row_bytes
from ridgeline.weights.source import RandomSource, Raw

BLOCK_FORMATS = [fmt for fmt in FORMATS.values() if fmt.block > 1]
OF_GGUF = {name: fmt for name, fmt in FORMATS.items() if fmt.ggml_type is not None}
PACKED = {name: fmt for name, fmt in FORMATS.items() if fmt.pack_blocks}
PACKED_OF_GGUF = {name: fmt for name, fmt in PACKED.items() if name in OF_GGUF}
READ_ONLY = [name for name in FORMATS if name not in PACKED]
ROWS = (1, 3, 17, 33)


def random_raw(fmt, rows, k, seed=0):
    """Random bytes: every bit pattern of weights and scales, inf, nan and subnormal ones included."""
    return np.random.default_rng(seed).integers(0, 256, (rows, row_bytes(fmt, k)), dtype=np.uint8)


def same_bits(got, expected):
    """Equal bit for bit, but for the payload of a nan."""
    bits = np.ascontiguousarray(got).view(np.uint32) == np.ascontiguousarray(expected).view(np.uint32)
    return got.dtype == np.float32 and (bits | (np.isnan(got) & np.isnan(expected))).all()


def reference(gguf, fmt):
    return gguf.GGMLQuantizationType(fmt.ggml_type)


@pytest.mark.parametrize("fmt", OF_GGUF.values(), ids=OF_GGUF)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # the reference's
def test_unpack_equals_reference_bit_for_bit(fmt, rows):
    gguf = pytest.importorskip("gguf")
    k = 3 * max(32, fmt.block)
    raw = random_raw(fmt, rows, k, seed=rows)
    try:
        expected = gguf.quants.dequantize(raw, reference(gguf, fmt))
    except NotImplementedError:
        assert fmt.name == "q8_k"  # test_kquants.py has a loop for it
        return
    got = fmt.unpack(raw)
    assert got.shape == (rows, k) and same_bits(got, expected)


@pytest.mark.parametrize("fmt", PACKED_OF_GGUF.values(), ids=PACKED_OF_GGUF)
@pytest.mark.parametrize("scale", [1e-5, 0.02, 1.0, 300.0])
def test_pack_equals_reference_quantiser(fmt, scale):
    gguf = pytest.importorskip("gguf")
    x = np.random.default_rng(3).standard_normal((33, 128)).astype(np.float32) * np.float32(scale)
    x[0, :32] = 0
    x[1, :32] = 1
    x[2, 32:64] = -x[2, 64:96]
    expected = gguf.quants.quantize(x, reference(gguf, fmt)).view(np.uint8)
    assert fmt.pack(x).tobytes() == expected.tobytes()


@pytest.mark.parametrize("fmt", OF_GGUF.values(), ids=OF_GGUF)
def test_table_row_agrees_with_reference_sizes(fmt):
    gguf = pytest.importorskip("gguf")
    assert (fmt.block, fmt.block_bytes) == gguf.GGML_QUANT_SIZES[reference(gguf, fmt)]
    assert reference(gguf, fmt).name.lower() == fmt.name
    assert fmt.bits == 8 * fmt.block_bytes / fmt.block


@pytest.mark.parametrize("fmt", PACKED.values(), ids=PACKED)
def test_packing_what_was_unpacked_loses_at_most_one_step(fmt):
    """The second packing of a block is at most half a quantisation step from the first."""
    x = np.random.default_rng(5).standard_normal((7, 256)).astype(np.float32)
    once = fmt.unpack(fmt.pack(x))
    steps = {"f32": 0, "f16": 2**-11, "bf16": 2**-8, "q8_0": 1 / 127, "int8": 1 / 127, "q5_0": 2 / 31, "q5_1": 2 / 31}
    step = np.abs(x).max() * steps.get(fmt.name.removesuffix("_g128"), 2 / 15)
    assert np.abs(once - x).max() <= step * 1.01
    assert np.abs(fmt.unpack(fmt.pack(once)) - once).max() <= step * 0.51


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 0.0, -0.0, 65504.0, 1e38, 3.3895314e38, 1e-40])
def test_bf16_pack_edges_match_reference(value):
    gguf = pytest.importorskip("gguf")
    x = np.full((1, 2), value, np.float32)
    expected = gguf.quants.quantize(x, gguf.GGMLQuantizationType.BF16)
    assert FORMATS["bf16"].pack(x).tobytes() == expected.tobytes()


def test_bf16_pack_keeps_a_signalling_nan_a_nan():
    x = np.array([[0x7F800001, 0xFFFFFFFF]], np.uint32).view(np.float32)
    assert np.isnan(FORMATS["bf16"].unpack(FORMATS["bf16"].pack(x))).all()


@pytest.mark.parametrize("fmt", BLOCK_FORMATS, ids=lambda f: f.name)
def test_partial_blocks_are_refused_by_name(fmt):
    with pytest.raises(Unsupported, match=rf"{fmt.name} packs {fmt.block} .* {fmt.block + 68} "):
        row_bytes(fmt, fmt.block + 68)
    with pytest.raises(Unsupported, match=fmt.name):
        fmt.pack(np.zeros((2, 31), np.float32))
    with pytest.raises(Unsupported, match=fmt.name):
        fmt.unpack(np.zeros((2, fmt.block_bytes + 1), np.uint8))


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_strided_unaligned_and_empty_inputs(fmt):
    k = 2 * max(32, fmt.block)
    raw = random_raw(fmt, 5, k)
    wide = np.zeros((5, raw.shape[1] + 3), np.uint8)
    wide[:, 1:-2] = raw
    assert same_bits(fmt.unpack(wide[:, 1:-2]), fmt.unpack(raw))
    shifted = np.frombuffer(b"\0" + raw.tobytes(), np.uint8, offset=1).reshape(raw.shape)
    got = fmt.unpack(shifted)
    assert same_bits(got, fmt.unpack(raw)) and got.flags.aligned
    assert fmt.unpack(raw[:0]).shape == (0, k)


def test_unknown_format_lists_the_known():
    with pytest.raises(Unsupported, match=r"iq1_s.*q4_1"):
        get_format("iq1_s")


@pytest.mark.parametrize("name", READ_ONLY)
def test_read_only_formats_refuse_to_pack_and_name_those_that_do(name):
    with pytest.raises(Unsupported, match=rf"{name} .*q4_1, q5_0, q5_1, q8_0, int8, "):
        FORMATS[name].pack(np.zeros((2, 256), np.float32))
    with pytest.raises(Unsupported, match=rf"{name} .*q4_1, q5_0, q5_1, q8_0, int8, "):
        RandomSource({"w": (4, 256)}, name)


SHAPES = {"blk.0.w": (48, 384), "blk.1.w": (48, 384), "experts": (3, 8, 128), "norm": (96,)}


@pytest.mark.parametrize("name", PACKED)
def test_random_source_any_slice_reproduces_the_whole(name):
    source = RandomSource(SHAPES, name, seed=7)
    whole = source.read("blk.0.w")
    assert whole.shape == (48, 384) and whole.data.shape == (48, row_bytes(FORMATS[name], 384))
    part = RandomSource(SHAPES, name, seed=7).read("blk.0.w", slice(11, 20))
    assert part.shape == (9, 384) and part.data.tobytes() == whole.data[11:20].tobytes()
    experts = source.read("experts")
    assert experts.float32().shape == (3, 8, 128)
    assert source.read("experts", slice(8, 16)).data.tobytes() == experts.data[8:16].tobytes()
    assert (source.read("norm").float32() == 1).all() and source.info("norm").format == "f32"
    assert source.read("norm", slice(4, 10)).float32().shape == (6,)


@pytest.mark.parametrize("name", PACKED)
def test_random_source_statistics(name):
    w = RandomSource({"w": (512, 1024)}, name, seed=1).read("w").float32()
    assert math.isclose(w.std(), 0.02, rel_tol=0.02) and abs(w.mean()) < 2e-4
    assert np.linalg.matrix_rank(w) == 512


def test_random_source_depends_on_seed_and_name_only():
    def data(seed, tensor, shapes=SHAPES):
        return RandomSource(shapes, "q4_1", seed).read(tensor).data.tobytes()

    assert data(1, "blk.0.w") == data(1, "blk.0.w", {"blk.0.w": (48, 384)})
    assert data(1, "blk.0.w") != data(2, "blk.0.w")
    assert data(1, "blk.0.w") != data(1, "blk.1.w")


def test_random_source_refuses_unknown_tensors_and_partial_blocks():
    with pytest.raises(ModelFileError, match="'lm_head'"):
        RandomSource(SHAPES, "f16").read("lm_head")
    with pytest.raises(Unsupported, match=r"'w' \(4, 100\).*q8_0"):
        RandomSource({"w": (4, 100)}, "q8_0")


def test_raw_float32_keeps_the_shape_of_vectors():
    raw = Raw("f16", (3,), np.array([[1, 2, 3]], np.float16).view(np.uint8))
    assert raw.float32().tolist() == [1, 2, 3]
