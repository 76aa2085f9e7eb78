"""How many bytes of Python objects a byte of a hostile header can cost: headers of megabytes made of the dearest
entries each format has, against the slopes that the readers state.
"""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import pytest

from ridgeline.errors import RidgelineError
from ridgeline.weights.gguf import GGUFFile
from ridgeline.weights.load import read_json
from ridgeline.weights.safetensors import SafetensorsFile

SIZE = 1 << 19
GGUF_SLOPE, JSON_SLOPE = 16, 36  # bytes allocated per byte of header
FREE = 1 << 18


def header(tensors: int, keys: int, body: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + body


def text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def array(element: int, count: int, body: bytes) -> bytes:
    return header(0, 1, text(b"k") + struct.pack("<IIQ", 9, element, count) + body)


def inner(kind: int, entry: bytes, count: int) -> bytes:
    """An array of arrays of numbers."""
    arrays = SIZE // (12 + len(entry) * count) or 1
    return array(9, arrays, (struct.pack("<IQ", kind, count) + entry * count) * arrays)


def records(layout: str, *dims: int) -> bytes:
    entry = struct.pack("<I" + layout, len(dims), *dims, 99, 0)  # of no known type: takes no bytes
    count = SIZE // (13 + len(entry))
    return header(count, 0, b"".join(text(b"%05x" % i) + entry for i in range(count))) + bytes(64)


def keys(value: bytes) -> bytes:
    count = min(SIZE // (12 + len(value)), 1 << 16)
    return header(0, count, b"".join(text(b"%04x" % i) + value for i in range(count)))


GGUF = {
    "tensors": records("QIQ", 1),
    "tensors of four dimensions": records("QQQQIQ", 1, 1, 1, 1000),
    "keys": keys(struct.pack("<IB", 0, 1)),
    "numbers": keys(struct.pack("<II", 4, 1 << 30)),
    "empty arrays": keys(struct.pack("<IIQ", 9, 0, 0)),
    "empty strings": array(8, SIZE // 8, text(b"") * (SIZE // 8)),
    "short strings": array(8, SIZE // 10, text(b"ab") * (SIZE // 10)),
    "wide strings": array(8, SIZE // 12, text("\U0001f600".encode()) * (SIZE // 12)),
    "bools": array(7, SIZE, bytes(SIZE)),
    "many inner arrays": inner(0, b"", 0),
    "short inner arrays": inner(1, b"\x80", 1),
    "an inner array of bytes": inner(1, b"\x80", SIZE - 12),
    "an inner array of halves": inner(2, b"\xff\xff", SIZE // 2 - 6),
    "an inner array of words": inner(4, b"\xff\xff\xff\xff", SIZE // 4 - 3),
    "an inner array of floats": inner(6, struct.pack("<f", 1.5), SIZE // 4 - 3),
}


def listed(entry: str) -> bytes:
    count = SIZE // (len(entry.encode()) + 1)
    return ('{"a":[' + ",".join([entry] * count) + "]}").encode()


RECORD = '"%05x":{"dtype":"F32","shape":[],"data_offsets":[%d,%d]}'
JSON = {
    "records": ("{" + ",".join(RECORD % (i, 4 * i, 4 * i + 4) for i in range(SIZE // 70)) + "}").encode(),
    "keys": ("{" + ",".join(f'"{i:x}":0' for i in range(SIZE // 9)) + "}").encode(),
    **{entry: listed(entry) for entry in ("[]", "{}", "[[]]", '{"a":0}', "-9", "9999", "1.5", '"ab"', '"\U0001f600"')},
}


def slope(read, path: Path, data: bytes, header_bytes: int) -> float:
    """Bytes allocated at the peak, less what is free, per byte of header."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        read(path)
    except RidgelineError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return (peak - FREE) / header_bytes


@pytest.mark.parametrize("name", GGUF)
def test_gguf(name, tmp_path):
    assert slope(GGUFFile, tmp_path / "x.gguf", GGUF[name], len(GGUF[name])) <= GGUF_SLOPE


@pytest.mark.parametrize("name", JSON)
def test_safetensors(name, tmp_path):
    data = struct.pack("<Q", len(JSON[name])) + JSON[name] + bytes(SIZE // 10)
    assert slope(SafetensorsFile, tmp_path / "x.safetensors", data, len(JSON[name])) <= JSON_SLOPE


@pytest.mark.parametrize("name", JSON)
def test_config(name, tmp_path):
    assert slope(read_json, tmp_path / "config.json", JSON[name], len(JSON[name])) <= JSON_SLOPE
