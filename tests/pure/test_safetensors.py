"""The safetensors reader: single and sharded files read back exactly, and files that lie refused."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ridgeline.errors import ModelFileError, ModelNotFound, RidgelineError, Unsupported
from ridgeline.weights import safetensors as reader
from ridgeline.weights.safetensors import SafetensorsFile, open_sharded
from ridgeline.weights.source import SafetensorsSource

MATRIX = np.arange(6, dtype=np.float32).reshape(2, 3)
MATRIX_BYTES = MATRIX.tobytes()


def entry(dtype="F32", shape=(2, 3), begin=0, end=24):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def build(header, data=MATRIX_BYTES, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def write(path, data):
    path.write_bytes(data)
    return path


def shard(path, tensors):
    """A file of float32 arrays by name."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, x in tensors.items():
        header[name] = entry("F32", x.shape, len(data), len(data) + x.nbytes)
        data += x.tobytes()
    return write(path, build(header, data))


def index(folder, weight_map):
    write(folder / "model.safetensors.index.json", json.dumps({"weight_map": weight_map}).encode())


def test_reads_all_three_formats_scalars_and_empty_tensors(tmp_path):
    bf16 = np.array([0x3F80, 0xC000], np.uint16)
    parts = [
        MATRIX.tobytes(),
        np.array([1, 2], np.float16).tobytes(),
        bf16.tobytes(),
        np.float32(9).tobytes(),
    ]
    header = {
        "__metadata__": {"format": "pt"},
        "m": entry(),
        "h": entry("F16", (2,), 24, 28),
        "b": entry("BF16", (1, 2), 28, 32),
        "scalar": entry("F32", (), 32, 36),
        "empty": entry("F32", (0, 4), 36, 36),
    }
    source = SafetensorsSource(write(tmp_path / "x.safetensors", build(header, b"".join(parts))))
    assert list(source.names()) == ["m", "h", "b", "scalar", "empty"]
    assert source.read("m").float32().tolist() == MATRIX.tolist()
    assert source.read("m", slice(1, 2)).float32().tolist() == [[3, 4, 5]]
    assert source.read("h").float32().tolist() == [1, 2]
    assert source.read("b").float32().tolist() == [[1, -2]] and source.info("b").format == "bf16"
    assert source.read("scalar").float32().shape == () and source.read("scalar").float32() == 9
    assert source.read("empty").float32().shape == (0, 4)
    assert not source.read("m").data.flags.owndata and not source.read("m").data.flags.writeable


def test_files_of_the_reference_writer(tmp_path):
    reference = pytest.importorskip("safetensors.numpy")
    tensors = {f"t{i}": np.random.default_rng(i).standard_normal((i + 1, 5)).astype(np.float32) for i in range(4)}
    tensors["half"] = np.ones((3,), np.float16)
    reference.save_file(tensors, tmp_path / "x.safetensors", metadata={"a": "b"})
    source = SafetensorsSource(tmp_path / "x.safetensors")
    assert set(source.names()) == set(tensors)
    for name, x in tensors.items():
        assert np.array_equal(source.read(name).float32(), x.astype(np.float32))


@pytest.mark.parity
def test_bfloat16_files_of_torch(tmp_path):
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("safetensors.torch")
    x = torch.randn(7, 9, generator=torch.Generator().manual_seed(0)).bfloat16()
    reference.save_file({"x": x}, tmp_path / "x.safetensors")
    got = SafetensorsSource(tmp_path / "x.safetensors").read("x")
    assert got.format == "bf16" and np.array_equal(got.float32(), x.float().numpy())


def test_other_dtypes_are_recorded_and_refused_when_read(tmp_path):
    source = SafetensorsSource(write(tmp_path / "x.safetensors", build({"i": entry("I64", (3,))})))
    assert source.info("i").format == "i64" and source.info("i").shape == (3,)
    with pytest.raises(Unsupported, match=r"'i' is i64.*BF16"):
        source.read("i")


LIES = [
    pytest.param(b"", "does not fit", id="empty file"),
    pytest.param(b"\1\0\0", "does not fit", id="three bytes"),
    pytest.param(build({"m": entry()}, length=1 << 40), "does not fit", id="header past the file"),
    pytest.param(build({"m": entry()}, length=(1 << 64) - 1), "does not fit", id="header 2^64-1"),
    pytest.param(build({"m": entry()}, length=0), "JSON", id="header of 0 bytes"),
    pytest.param(build({"m": entry()}, length=20), "JSON", id="header cut"),
    pytest.param(build(b"[]"), "not an object", id="a list"),
    pytest.param(build(b"\xff\xff"), "JSON", id="not UTF-8"),
    pytest.param(build(b'{"a":' * 100_000), "JSON", id="nested 100 000 deep"),
    pytest.param(build(b'{"a": ' + b"9" * 10_000 + b"}"), "JSON|'a'", id="a number of 10 000 digits"),
    pytest.param(build(b'{"m": {}, "m": {}}'), "twice", id="repeated tensor"),
    pytest.param(build(b'{"m": {"dtype":"F32","dtype":"F16"}}'), "twice", id="repeated field"),
    pytest.param(build({"m": 3}), "'m' must have", id="entry a number"),
    pytest.param(build({"m": {"dtype": "F32", "shape": [2, 3]}}), "'m' must have", id="no offsets"),
    pytest.param(build({"m": entry() | {"extra": 1}}), "'m' must have", id="extra field"),
    pytest.param(build({"m": entry() | {"dtype": 7}}), "dtype", id="dtype a number"),
    pytest.param(build({"m": entry() | {"shape": 6}}), "'m' has a shape", id="shape a number"),
    pytest.param(build({"m": entry(shape=(-2, -3))}), "'m' has a shape", id="negative shape"),
    pytest.param(build({"m": entry(shape=(2.0, 3))}), "'m' has a shape", id="float shape"),
    pytest.param(build({"m": entry(shape=(True, 6))}), "'m' has a shape", id="bool shape"),
    pytest.param(build({"m": entry(shape=(1 << 64, 3))}), "'m' has a shape", id="shape past 2^63"),
    pytest.param(build({"m": entry(shape=(1 << 62, 1 << 62))}), "'m'.*does not take 24", id="product past 2^64"),
    pytest.param(build({"m": entry(shape=(2, 4))}), "'m'.*does not take 24", id="shape too large"),
    pytest.param(build({"m": entry("F16")}), "'m'.*does not take 24", id="dtype too small"),
    pytest.param(build({"m": entry(begin=24, end=0)}), "data_offsets", id="offsets reversed"),
    pytest.param(build({"m": entry(begin=-24, end=0)}), "data_offsets", id="offsets negative"),
    pytest.param(build({"m": entry() | {"data_offsets": [0]}}), "data_offsets", id="one offset"),
    pytest.param(build({"m": entry() | {"data_offsets": "0024"}}), "data_offsets", id="offsets a string"),
    pytest.param(build({"m": entry(begin=4, end=28)}), "'m' ends at.*past the end", id="end past the file"),
    pytest.param(build({"m": entry("I64", (3,), 0, 1 << 50)}), "past the end", id="other dtype past the file"),
    pytest.param(build({"m": entry(), "n": entry("F32", (1,), 20, 24)}), "'m' and 'n' overlap", id="overlap"),
    pytest.param(build({"m": entry(), "n": entry()}), "overlap", id="same bytes twice"),
    pytest.param(build({"m": entry()})[:-1], "past the end", id="one byte short"),
]


@pytest.mark.parametrize(("data", "match"), LIES)
def test_lying_files_are_refused_by_name(tmp_path, data, match):
    with pytest.raises(ModelFileError, match=match) as caught:
        SafetensorsFile(write(tmp_path / "x.safetensors", data))
    assert "x.safetensors" in str(caught.value)


def test_header_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "MAX_HEADER", 10)
    with pytest.raises(ModelFileError, match="limit 10"):
        SafetensorsFile(write(tmp_path / "x.safetensors", build({"m": entry()})))


def test_missing_tensor_and_missing_file(tmp_path):
    source = SafetensorsSource(shard(tmp_path / "x.safetensors", {"m": MATRIX}))
    for call in (source.info, source.read):
        with pytest.raises(ModelFileError, match=r"x\.safetensors.*'lm_head'"):
            call("lm_head")
    with pytest.raises(ModelNotFound, match=r"y\.safetensors"):
        SafetensorsFile(tmp_path / "y.safetensors")


def test_directory_with_one_file_and_with_shards(tmp_path):
    one, many = tmp_path / "one", tmp_path / "many"
    one.mkdir()
    many.mkdir()
    shard(one / "model.safetensors", {"m": MATRIX})
    assert SafetensorsSource(one).read("m").float32().tolist() == MATRIX.tolist()
    shard(many / "a.safetensors", {"a": MATRIX, "unlisted": MATRIX})
    shard(many / "b.safetensors", {"b": MATRIX + 1, "c": MATRIX + 2})
    index(many, {"a": "a.safetensors", "b": "b.safetensors", "c": "b.safetensors"})
    source = SafetensorsSource(many)
    assert list(source.names()) == ["a", "b", "c"]
    assert source.read("c").float32().tolist() == (MATRIX + 2).tolist()
    files = open_sharded(many)
    assert files["b"] is files["c"]


@pytest.mark.parametrize(
    "name",
    [
        "../a.safetensors",
        "/etc/a.safetensors",
        "sub/a.safetensors",
        "..\\a.safetensors",
        "c:a.safetensors",
        "..",
        "",
        "a.bin",
        "a\x00.safetensors",
        "a\ud800.safetensors",
        7,
        None,
        ["a.safetensors"],
    ],
)
def test_shards_outside_the_directory_are_refused(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    shard(tmp_path / "a.safetensors", {"a": MATRIX})
    index(folder, {"a": name})
    with pytest.raises(ModelFileError, match="'a' names the shard"):
        open_sharded(folder)


def test_tensor_missing_from_its_shard_names_both(tmp_path):
    shard(tmp_path / "a.safetensors", {"a": MATRIX})
    index(tmp_path, {"a": "a.safetensors", "b": "a.safetensors"})
    with pytest.raises(ModelFileError, match=r"'b' is not in its shard 'a\.safetensors'"):
        open_sharded(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map'])
def test_bad_index_files(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelFileError, match=r"index.json"):
        open_sharded(tmp_path)


def test_missing_shard_and_empty_directory(tmp_path):
    with pytest.raises(ModelNotFound, match="holds neither"):
        open_sharded(tmp_path)
    index(tmp_path, {"a": "gone.safetensors"})
    with pytest.raises(ModelNotFound, match=r"gone\.safetensors"):
        open_sharded(tmp_path)


SMALL = build({"m": entry(), "h": entry("F16", (2,), 24, 28)}, MATRIX.tobytes() + b"\0\1\2\3")


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_random_damage_gives_typed_errors_only(tmp_path, edits):
    data = bytearray(SMALL)
    for at, value in edits:
        data[at] = value
    try:
        source = SafetensorsSource(write(tmp_path / "x.safetensors", bytes(data)))
        for name in source.names():
            source.read(name).float32()
    except RidgelineError as e:
        assert str(e)
