"""The GGUF reader: files of the gguf package read back exactly, files that lie refused with a typed error."""

from __future__ import annotations

import contextlib
import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_formats import same_bits

from ridgeline.errors import ModelFileError, ModelNotFound, RidgelineError, Unsupported
from ridgeline.quant.format import FORMATS, row_bytes
from ridgeline.weights import gguf as reader
from ridgeline.weights.gguf import GGUFFile
from ridgeline.weights.source import GGUFSource

U8, I8, U32, I32, F32, BOOL, STR, ARR, U64, F64, TYPE_F32, TYPE_Q4_1 = 0, 1, 4, 5, 6, 7, 8, 9, 10, 12, 0, 3
STORED = {name: f for name, f in FORMATS.items() if f.ggml_type is not None}  # what GGUF files may hold
HUGE = (1 << 64) - 1


def u32(n):
    return struct.pack("<I", n)


def u64(n):
    return struct.pack("<Q", n)


def string(text, length=None):
    data = text if isinstance(text, bytes) else text.encode()
    return u64(len(data) if length is None else length) + data


def kv(key, value_type, payload):
    return string(key) + u32(value_type) + payload


def array(element, count, payload=b""):
    return u32(element) + u64(count) + payload


def tensor(name, dims, type_number=TYPE_F32, offset=0):
    return string(name) + u32(len(dims)) + b"".join(map(u64, dims)) + u32(type_number) + u64(offset)


def build(kvs=(), tensors=(), data=b"", version=3, *, counts=None, magic=b"GGUF"):
    n_tensors, n_keys = counts or (len(tensors), len(kvs))
    header = magic + u32(version) + u64(n_tensors) + u64(n_keys) + b"".join(kvs) + b"".join(tensors)
    return header + b"\0" * (-len(header) % 32) + data


def valid(**changes):
    """A small file with one of everything."""
    parts = {
        "kvs": [
            kv("general.architecture", STR, string("llama")),
            kv("a.count", U32, u32(7)),
            kv("a.flag", BOOL, b"\1"),
            kv("a.tokens", ARR, array(STR, 3, string("a") + string("") + string("ção"))),
            kv("a.scores", ARR, array(F32, 2, struct.pack("<2f", 1.5, -2))),
            kv(
                "a.nested",
                ARR,
                array(ARR, 2, array(I32, 1, struct.pack("<i", -4)) + array(STR, 1, string("z"))),
            ),
        ],
        "tensors": [tensor("w", (32, 2), TYPE_Q4_1, 0), tensor("norm", (8,), TYPE_F32, 64)],
        "data": bytes(range(40)) + b"\0" * 24 + struct.pack("<8f", *range(8)),
    }
    return build(**(parts | changes))


def write(tmp_path, data):
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(path, tensors packed as written) of a file made by the gguf package."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("gguf") / "written.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("t.u8", 200)
    writer.add_int8("t.i8", -3)
    writer.add_uint16("t.u16", 60000)
    writer.add_int16("t.i16", -300)
    writer.add_uint32("t.u32", 1 << 31)
    writer.add_int32("t.i32", -(1 << 31))
    writer.add_uint64("t.u64", 1 << 63)
    writer.add_int64("t.i64", -(1 << 63))
    writer.add_float32("t.f32", 0.1)
    writer.add_float64("t.f64", 0.1)
    writer.add_bool("t.bool", True)
    writer.add_string("t.str", "naïve ☃")
    writer.add_array("t.tokens", [f"tök{i}" for i in range(300)])
    writer.add_array("t.ints", list(range(-5, 5)))
    writer.add_array("t.floats", [0.5, 1.5])
    writer.add_array("t.bools", [True, False, True])
    tensors = {}
    for i, fmt in enumerate(STORED.values()):
        shape = (3 + i, 2 * max(32, fmt.block))
        raw = np.random.default_rng(i).integers(0, 256, (shape[0], row_bytes(fmt, shape[1])), np.uint8)
        tensors[f"m.{fmt.name}"] = (fmt.name, shape, raw)
    tensors["vector"] = ("f32", (5,), np.arange(5, dtype=np.float32).view(np.uint8)[None])
    tensors["cube"] = ("f32", (2, 3, 4), np.arange(24, dtype=np.float32).view(np.uint8).reshape(6, 16))
    for name, (fmt_name, shape, raw) in tensors.items():
        data = raw.reshape(*shape[:-1], -1)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType(FORMATS[fmt_name].ggml_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, tensors


def test_metadata_of_a_written_file(written):
    meta = GGUFFile(written[0]).metadata
    assert (meta["t.u8"], meta["t.i8"], meta["t.u16"], meta["t.i16"]) == (200, -3, 60000, -300)
    assert (meta["t.u32"], meta["t.i32"]) == (1 << 31, -(1 << 31))
    assert (meta["t.u64"], meta["t.i64"]) == (1 << 63, -(1 << 63))
    assert meta["t.f32"] == np.float32(0.1) and meta["t.f64"] == 0.1
    assert meta["t.bool"] is True and meta["t.str"] == "naïve ☃"
    assert meta["t.tokens"] == [f"tök{i}" for i in range(300)]
    assert meta["t.ints"].tolist() == list(range(-5, 5)) and meta["t.floats"].tolist() == [0.5, 1.5]
    assert meta["t.bools"].dtype == np.bool_ and meta["t.bools"].tolist() == [True, False, True]


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # the reference's
def test_tensors_of_a_written_file_match_the_reference_reader(written):
    gguf = pytest.importorskip("gguf")
    path, tensors = written
    source = GGUFSource(GGUFFile(path))
    assert set(source.names()) == set(tensors)
    for expected in gguf.GGUFReader(path).tensors:
        fmt_name, shape, raw = tensors[expected.name]
        assert source.info(expected.name).shape == shape and source.info(expected.name).format == fmt_name
        got = source.read(expected.name)
        assert got.data.tobytes() == raw.tobytes() == expected.data.tobytes()
        if fmt_name == "q8_k":  # the package cannot unpack it
            continue
        values = gguf.quants.dequantize(expected.data, expected.tensor_type)
        assert got.float32().shape == shape and same_bits(got.float32(), values)


@pytest.mark.parametrize("fmt", STORED)
def test_any_rows_of_any_format_equal_those_of_the_whole(written, fmt):
    path, tensors = written
    source = GGUFSource(GGUFFile(path))
    name, (_, (rows, k), raw) = f"m.{fmt}", tensors[f"m.{fmt}"]
    whole = FORMATS[fmt].unpack(raw)
    for cut in (slice(0, 1), slice(1, 3), slice(2, rows)):
        part = source.read(name, cut)
        assert part.shape == (cut.stop - cut.start, k)
        np.testing.assert_array_equal(part.float32(), whole[cut])


def test_reads_are_read_only_views_cut_by_rows(written):
    path, tensors = written
    source = GGUFSource(GGUFFile(path))
    name = "m.q4_1"
    whole, part = source.read(name), source.read(name, slice(2, 5))
    assert part.shape == (3, 64) and part.data.tobytes() == tensors[name][2][2:5].tobytes()
    assert not whole.data.flags.writeable and not whole.data.flags.owndata and not part.data.flags.owndata
    assert source.read("vector", slice(1, 3)).float32().tolist() == [1, 2]
    assert source.read("cube", slice(4, None)).float32().tolist() == [[16, 17, 18, 19], [20, 21, 22, 23]]
    assert source.read(name, slice(4, 2)).shape == (0, 64)


def test_views_outlive_the_file_object_and_the_name(tmp_path):
    path = write(tmp_path, valid())
    data = GGUFFile(path).data("norm")
    path.unlink()
    assert data.view(np.float32).tolist() == list(range(8))


@pytest.mark.parametrize("version", [2, 3])
def test_small_valid_file(tmp_path, version):
    file = GGUFFile(write(tmp_path, valid(version=version)))
    assert file.version == version and file.alignment == 32 and file.data_offset % 32 == 0
    assert file.metadata["a.tokens"] == ["a", "", "ção"] and file.metadata["a.flag"] is True
    assert file.metadata["a.nested"] == [[-4], ["z"]]
    assert file.tensors["w"].shape == (2, 32) and file.tensors["w"].nbytes == 40
    assert file.data("norm").view(np.float32).tolist() == list(range(8))


def test_no_tensors_and_no_padding_is_legal(tmp_path):
    data = b"GGUF" + u32(3) + u64(0) + u64(1) + kv("k", U8, b"\5")
    assert GGUFFile(write(tmp_path, data)).metadata == {"k": 5}


def test_tensors_may_touch_and_come_in_any_order(tmp_path):
    data = struct.pack("<24f", *range(24))
    tensors = [tensor("b", (8,), offset=32), tensor("c", (8,), offset=64), tensor("a", (8,))]
    file = GGUFFile(write(tmp_path, valid(tensors=tensors, data=data)))
    assert b"".join(file.data(name).tobytes() for name in "abc") == data


@pytest.mark.parametrize("alignment", [1, 8, 64])
def test_alignment_key_moves_the_data(tmp_path, alignment):
    kvs = [kv("general.alignment", U32, u32(alignment))]
    header = build(kvs, [tensor("t", (1,))])[: 24 + len(kvs[0]) + len(tensor("t", (1,)))]
    data = header + b"\0" * (-len(header) % alignment) + struct.pack("<f", 3)
    assert GGUFFile(write(tmp_path, data)).data("t").view(np.float32).tolist() == [3]


@pytest.mark.parametrize(("number", "name"), [(16, "iq2_xxs"), (39, "mxfp4"), (4, "ggml_type_4"), (2**32 - 1, "ggml")])
def test_unsupported_tensor_types_are_recorded_and_refused_when_read(tmp_path, number, name):
    tensors = [tensor("w", (256, 2), number, 0), tensor("norm", (8,), TYPE_F32, 64)]
    source = GGUFSource(GGUFFile(write(tmp_path, valid(tensors=tensors))))
    assert source.info("w").shape == (2, 256) and source.info("w").format.startswith(name)
    assert source.file.tensors["w"].type_number == number and source.file.tensors["w"].nbytes is None
    source.read("norm")
    with pytest.raises(Unsupported, match=rf"tensor 'w' is {name}.*type {number}\).*q4_1"):
        source.read("w")


def test_missing_tensor_names_file_and_tensor(tmp_path):
    source = GGUFSource(GGUFFile(write(tmp_path, valid())))
    for call in (source.info, source.read):
        with pytest.raises(ModelFileError, match=r"m\.gguf.*'lm_head'"):
            call("lm_head")


def test_split_models_are_refused(tmp_path):
    file = GGUFFile(write(tmp_path, valid(kvs=[kv("split.count", U8, b"\3")])))
    with pytest.raises(Unsupported, match="split"):
        GGUFSource(file)


def test_missing_file_and_directory(tmp_path):
    for path in (tmp_path / "absent.gguf", tmp_path):
        with pytest.raises(ModelNotFound, match="not a file"):
            GGUFFile(path)


def lying_metadata(name, entry, match):
    return pytest.param(valid(kvs=[entry]), ModelFileError, match, id=name)


def lying_tensors(name, match, *tensors, **parts):
    return pytest.param(valid(tensors=list(tensors), **parts), ModelFileError, match, id=name)


LIES = [
    pytest.param(b"", ModelFileError, "not a GGUF", id="empty file"),
    pytest.param(b"GGU", ModelFileError, "not a GGUF", id="three bytes"),
    pytest.param(valid(magic=b"GGML"), ModelFileError, "not a GGUF", id="magic"),
    pytest.param(b"GGUF\3\0", ModelFileError, "the version", id="cut in the version"),
    pytest.param(valid()[:20], ModelFileError, "metadata count", id="cut in the counts"),
    pytest.param(valid(version=1), Unsupported, "version 1", id="version 1"),
    pytest.param(valid(version=4), Unsupported, "version 4", id="version 4"),
    pytest.param(valid(version=0), Unsupported, "version 0", id="version 0"),
    pytest.param(valid(version=3 << 24), Unsupported, "big-endian", id="big endian"),
    pytest.param(valid(counts=(HUGE, 6)), ModelFileError, f"claims {HUGE} tensors", id="tensor count 2^64-1"),
    pytest.param(valid(counts=(2, HUGE)), ModelFileError, f"claims {HUGE} metadata", id="key count 2^64-1"),
    pytest.param(valid(counts=(1 << 18, 6)), ModelFileError, "a header of", id="tensor count past the file"),
    pytest.param(valid(counts=(2, 1 << 16)), ModelFileError, "a header of", id="key count past the file"),
    pytest.param(valid(counts=(3, 6)), ModelFileError, "tensor '': has 0|tensor '' has 0", id="one tensor more"),
    pytest.param(valid(counts=(2, 7)), ModelFileError, "name of tensor 0.*runs past", id="one key more"),
    pytest.param(valid(counts=(2, 5)), ModelFileError, "dimensions", id="one key fewer"),
    lying_metadata("key longer than the file", string("k", HUGE), "metadata key 0.*runs past"),
    lying_metadata("key just too long", string("k", 5000), "metadata key 0.*runs past"),
    lying_metadata("key not UTF-8", kv(b"\xff\xfe", U8, b"\0"), "metadata key 0.*UTF-8"),
    lying_metadata("value type 13", kv("k", 13, b""), "'k' has the unknown value type 13"),
    lying_metadata("value type 2^32-1", kv("k", 2**32 - 1, b""), "'k' has the unknown value type"),
    lying_metadata("bool of 2", kv("k", BOOL, b"\2"), "'k' is a bool stored as 2"),
    lying_metadata("string past the end", kv("k", STR, u64(1 << 40)), "'k'.*runs past"),
    lying_metadata("string not UTF-8", kv("k", STR, string(b"\xc3\x28")), "'k'.*UTF-8"),
    lying_metadata("array of 2^64-1 strings", kv("k", ARR, array(STR, HUGE)), "'k' needs"),
    lying_metadata("array of 2^40 floats", kv("k", ARR, array(F32, 1 << 40)), "'k' needs"),
    lying_metadata("array of 2^61 doubles", kv("k", ARR, array(F64, 1 << 61)), "'k' needs"),
    lying_metadata("array of 2^40 arrays", kv("k", ARR, array(ARR, 1 << 40)), "'k' needs"),
    lying_metadata("array of type 77", kv("k", ARR, array(77, 1)), "'k' is an array of the unknown"),
    lying_metadata("array of bools of 9", kv("k", ARR, array(BOOL, 2, b"\1\x09")), "'k' holds a bool stored as 9"),
    lying_metadata("three nested arrays", kv("k", ARR, array(ARR, 1, array(ARR, 1, array(U8, 0)))), "'k' nests"),
    lying_metadata("long string in an array", kv("k", ARR, array(STR, 2, string("a") + u64(9999))), "'k': string 1"),
    lying_metadata("bad UTF-8 in an array", kv("k", ARR, array(STR, 2, string("a") + string(b"\xff"))), "string 1"),
    lying_metadata("alignment of 48", kv("general.alignment", U32, u32(48)), "alignment.*48"),
    lying_metadata("alignment of 0", kv("general.alignment", U32, u32(0)), "alignment.*0"),
    lying_metadata("alignment a string", kv("general.alignment", STR, string("32")), "alignment"),
    lying_metadata("alignment a bool", kv("general.alignment", BOOL, b"\1"), "alignment"),
    lying_metadata("alignment of 2^31", kv("general.alignment", U32, u32(1 << 31)), "past the end"),
    pytest.param(valid(kvs=[kv("k", U8, b"\0")] * 2), ModelFileError, "'k' appears twice", id="repeated key"),
    lying_tensors("repeated tensor", "'t' appears twice", tensor("t", (1,)), tensor("t", (1,))),
    lying_tensors("no dimensions", "'t' has 0 dimensions", tensor("t", ())),
    lying_tensors("five dimensions", "'t' has 5 dimensions", tensor("t", (1,) * 5)),
    lying_tensors("2^32-1 dimensions", "dimensions", string("t") + u32(2**32 - 1) + b"\0" * 64),
    lying_tensors("dimension 0", "'t' has a dimension of size 0", tensor("t", (4, 0))),
    lying_tensors("dimension 2^64-1", "'t'.*past the end", tensor("t", (HUGE,))),
    lying_tensors("product past 2^64", "'t'.*past the end", tensor("t", (1 << 32, 1 << 32))),
    lying_tensors("partial block", "'t' has rows of 33", tensor("t", (33, 32), TYPE_Q4_1)),
    lying_tensors("partial block of 256", "'t' has rows of 640, not whole q6_k.* 256", tensor("t", (640, 2), 14)),
    lying_tensors("unaligned offset", "'t' starts at 4", tensor("t", (1,), offset=4)),
    lying_tensors("offset past the end", "'t'.*past the end", tensor("t", (1,), offset=1 << 20)),
    lying_tensors("offset near 2^64", "'t'.*past the end", tensor("t", (1,), offset=HUGE - 31)),
    lying_tensors("unknown type past the end", "'t'.*past the end", tensor("t", (1,), 16, 1 << 20)),
    lying_tensors("one byte short", "'norm'.*past the end", tensor("norm", (8,), offset=64), data=b"\0" * 95),
    lying_tensors("one place twice", "'a' and 'b' overlap at", tensor("a", (8,)), tensor("b", (8,))),
    lying_tensors("overlap", "'b' and 'a' overlap at", tensor("a", (8,), offset=32), tensor("b", (9,))),
    lying_tensors("overlap in order", "'a' and 'b' overlap", tensor("a", (9,)), tensor("b", (8,), offset=32)),
    lying_tensors("unknown type inside", "'a' and 'b' overlap", tensor("a", (9,)), tensor("b", (256,), 16, 32)),
    lying_tensors("two unknown types", "'a' and 'b' overlap", *[tensor(n, (256,), 16) for n in "ab"]),
    lying_tensors("name past the end", "tensor 0.*runs past", string("t", 1 << 33)),
    lying_tensors("name not UTF-8", "tensor 0.*UTF-8", tensor(b"\x80", (1,))),
]


@pytest.mark.parametrize(("data", "error", "match"), LIES)
def test_lying_files_are_refused_by_name(tmp_path, data, error, match):
    with pytest.raises(error, match=match) as caught:
        GGUFFile(write(tmp_path, data))
    assert "m.gguf" in str(caught.value)


def test_every_truncation_is_refused_or_whole(tmp_path):
    whole = valid()
    for cut in range(len(whole)):
        with pytest.raises(RidgelineError):
            GGUFFile(write(tmp_path, whole[:cut]))


def test_a_header_past_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "MAX_HEADER", 100)
    with pytest.raises(ModelFileError, match=r"byte 100|limit is at 100"):
        GGUFFile(write(tmp_path, valid()))


@pytest.mark.parametrize(
    "entry",
    [
        kv("k", ARR, array(STR, 200_000, string("ab") * 200_000)),
        kv("k", ARR, array(STR, 200_000, string("") * 200_000)),
        kv("k", ARR, array(ARR, 100_000, array(U8, 0) * 100_000)),
        *(kv("k", ARR, array(ARR, 100_000, array(I8, n, bytes([129, 128][:n])) * 100_000)) for n in (1, 2)),
        kv("k", ARR, array(ARR, 2, array(I8, 1_000_000, bytes(range(250)) * 4000) * 2)),
        kv("k", ARR, array(U8, 2_000_000, bytes(2_000_000))),
        kv("k", ARR, array(STR, (1 << 64) // 8 - 1)),
    ],
    ids=["short strings", "empty strings", "empty arrays", "ones", "pairs", "arrays of many", "bytes", "count alone"],
)
def test_parsing_costs_a_small_multiple_of_the_header(tmp_path, entry):
    path = write(tmp_path, valid(kvs=[entry]))
    tracemalloc.start()
    try:
        with contextlib.suppress(ModelFileError):
            GGUFFile(path)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 9 * path.stat().st_size + 100_000


def read_everything(path):
    source = GGUFSource(GGUFFile(path))
    for name in source.names():
        with contextlib.suppress(Unsupported):
            source.read(name).float32()


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, len(valid()) - 1), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, len(valid())),
)
def test_random_damage_gives_typed_errors_only(tmp_path, edits, cut):
    data = bytearray(valid())
    for at, value in edits:
        data[at] = value
    try:
        read_everything(write(tmp_path, bytes(data[: max(cut, 200)])))
    except RidgelineError as e:
        assert str(e)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(4, len(valid()) - 8), value=st.sampled_from([0, 1, 1 << 31, 1 << 32, 1 << 63, HUGE]))
def test_random_huge_words_give_typed_errors_only(tmp_path, at, value):
    data = bytearray(valid())
    data[at : at + 8] = u64(value)
    try:
        read_everything(write(tmp_path, bytes(data)))
    except RidgelineError as e:
        assert str(e)


def test_a_large_vocabulary_parses_quickly(tmp_path):
    """As many strings as the default model's tokens and merges; the bound leaves room for slow machines."""
    strings = b"".join(string(f"token {i}") for i in range(100_000))
    path = write(tmp_path, valid(kvs=[kv("k", ARR, array(STR, 100_000, strings))]))
    start = time.perf_counter()
    assert len(GGUFFile(path).metadata["k"]) == 100_000
    assert time.perf_counter() - start < 1.0
