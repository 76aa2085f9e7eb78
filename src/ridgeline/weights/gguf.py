"""A bounded reader of GGUF v2 and v3 (little-endian): metadata, tensor records, packed tensor bytes.

The file is hostile input: every count, length and offset is checked against the bytes that remain before
anything is allocated for it, so parsing costs at most a small multiple of the header, and the header is
capped. Layout follows the GGUF specification (ggml docs/gguf.md). Must not know what any metadata key or
tensor means.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ridgeline.errors import ModelFileError, Unsupported
from ridgeline.quant.format import FORMATS
from ridgeline.quant.pack import U8
from ridgeline.weights.mapped import RESIDENT, let_go, map_file

MAX_HEADER = 64 << 20  # real ones stay below 20 MB; tiny strings and arrays cost up to 9 bytes per byte
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 18
MAX_DIMS = 4
MAX_NESTING = 2  # an array of arrays, no deeper
DEFAULT_ALIGNMENT = 32

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d"}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

_FORMAT_OF_TYPE = {fmt.ggml_type: fmt for fmt in FORMATS.values() if fmt.ggml_type is not None}
# Named so that a refusal can say what the file holds; listed by type number.
_TYPE_NAMES = (
    "f32 f16 q4_0 q4_1 - - q5_0 q5_1 q8_0 q8_1 q2_k q3_k q4_k q5_k q6_k q8_k iq2_xxs iq2_xs iq3_xxs iq1_s "
    "iq4_nl iq3_s iq2_s iq4_xs i8 i16 i32 i64 f64 iq1_m bf16 - - - tq1_0 tq2_0 - - - mxfp4"
)
_OTHER_FORMATS = {i: name for i, name in enumerate(_TYPE_NAMES.split()) if name != "-"}


class GGUFTensor(msgspec.Struct, frozen=True):
    """One tensor's record. `shape` is row-major, numpy's order: the reverse of the file's dimension list."""

    name: str
    shape: tuple[int, ...]
    format: str  # a name in FORMATS, or one that reading refuses
    type_number: int
    offset: int  # from the start of the file
    nbytes: int | None  # None when the type is not supported


class GGUFFile:
    """A parsed header over a read-only mapping; `data(name)` gives a tensor's packed bytes without a copy.

    `metadata` holds Python scalars, str, numpy arrays (numbers, bools), lists (strings, nested arrays).
    Raises ModelFileError when the file is truncated or contradicts itself, Unsupported for v1 and big-endian
    files.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._bytes = map_file(self.path)
        self._handed = 0  # bytes of tensors, since they were let go
        cur = _Cursor(self.path, self._bytes)
        self.version, n_tensors, n_keys = _read_preamble(cur)
        self.metadata: dict[str, Any] = _read_metadata(cur, n_keys)
        records = _read_records(cur, n_tensors)
        self.alignment = _alignment(cur, self.metadata)
        self.data_offset = cur.pos + -cur.pos % self.alignment
        self.tensors: dict[str, GGUFTensor] = {r.name: self._place(cur, r) for r in records}
        _check_apart(cur, self.tensors.values())

    def _place(self, cur: _Cursor, record: _Record) -> GGUFTensor:
        """Check one record against the file's length and turn its offset into an absolute one."""
        label = f"tensor {record.name!r}"
        if record.offset % self.alignment:
            raise cur.error(f"{label} starts at {record.offset}, not a multiple of the alignment {self.alignment}")
        start = self.data_offset + record.offset
        fmt = _FORMAT_OF_TYPE.get(record.type_number)
        nbytes = None
        if fmt is not None:
            if record.shape[-1] % fmt.block:
                raise cur.error(f"{label} has rows of {record.shape[-1]}, not whole {fmt.name} blocks of {fmt.block}")
            nbytes = math.prod(record.shape) // fmt.block * fmt.block_bytes
        if start + (nbytes or 0) > cur.size:
            raise cur.error(f"{label} {record.shape} ends at byte {start + (nbytes or 0)}, past the end ({cur.size})")
        name = fmt.name if fmt else _OTHER_FORMATS.get(record.type_number, f"ggml_type_{record.type_number}")
        return GGUFTensor(record.name, record.shape, name, record.type_number, start, nbytes)

    @property
    def header(self) -> bytes:
        """All that comes before the tensors."""
        return self._bytes[: self.data_offset]

    def data(self, name: str) -> U8:
        """The tensor's bytes, uint8 [nbytes], read-only and zero-copy; Unsupported when its type is."""
        record = self.tensors.get(name)
        if record is None:
            raise ModelFileError(f"{self.path} has no tensor {name!r}")
        if record.nbytes is None:
            raise Unsupported(
                f"{self.path}: tensor {name!r} is {record.format} (GGUF type {record.type_number}); "
                f"supported: {', '.join(FORMATS)}"
            )
        self._handed += record.nbytes
        if self._handed > RESIDENT:
            let_go(self._bytes)
            self._handed = record.nbytes
        return np.frombuffer(self._bytes, np.uint8, record.nbytes, record.offset)


class _Record(msgspec.Struct, frozen=True):
    name: str
    shape: tuple[int, ...]
    type_number: int
    offset: int  # from the start of the data section


class _Cursor:
    """A position in the header that cannot pass the end of the file, nor MAX_HEADER."""

    def __init__(self, path: Path, data: Any) -> None:
        self.path, self.data, self.pos, self.size = path, data, 0, len(data)
        self.end = min(self.size, MAX_HEADER)

    def error(self, message: str) -> ModelFileError:
        return ModelFileError(f"{self.path}: {message}")

    def need(self, n: int, what: str) -> None:
        if n > self.end - self.pos:
            limit = "the file ends" if self.end == self.size else "the header limit is"
            raise self.error(f"{what} needs {n} bytes at offset {self.pos}, but {limit} at {self.end}")

    def unpack(self, layout: struct.Struct, what: str) -> Any:
        self.need(layout.size, what)
        (value,) = layout.unpack_from(self.data, self.pos)
        self.pos += layout.size
        return value

    def string(self, what: str) -> str:
        return self.strings(1, what)[0]

    def strings(self, count: int, what: str) -> list[str]:
        """`count` length-prefixed UTF-8 strings. One tight loop: vocabularies hold 10^5 of them."""
        self.need(8 * count, what)
        data, pos, end, length_at = self.data, self.pos, self.end, _U64.unpack_from
        out: list[str] = []
        try:
            for _ in range(count):
                start = pos + 8
                pos = start + length_at(data, pos)[0] if start <= end else start
                if pos > end:
                    raise self.error(f"{what}: string {len(out)} at offset {start} runs past byte {end}")
                out.append(data[start:pos].decode())
        except UnicodeDecodeError as e:
            raise self.error(f"{what}: string {len(out)} at offset {start} is not UTF-8") from e
        self.pos = pos
        return out


def _read_preamble(cur: _Cursor) -> tuple[int, int, int]:
    """Magic, version and the two counts: (version, n_tensors, n_keys)."""
    if cur.data[:4] != b"GGUF":
        raise cur.error("not a GGUF file (its first four bytes are not 'GGUF')")
    cur.pos = 4
    version = cur.unpack(_U32, "the version")
    if version & 0xFFFF == 0 and version:
        raise Unsupported(f"{cur.path}: a big-endian GGUF file; convert it to little-endian")
    if version not in (2, 3):
        raise Unsupported(f"{cur.path}: GGUF version {version} is not supported; convert it to version 3")
    n_tensors = cur.unpack(_U64, "the tensor count")
    n_keys = cur.unpack(_U64, "the metadata count")
    if n_tensors > MAX_TENSORS:
        raise cur.error(f"claims {n_tensors} tensors; the limit is {MAX_TENSORS}")
    if n_keys > MAX_KEYS:
        raise cur.error(f"claims {n_keys} metadata keys; the limit is {MAX_KEYS}")
    cur.need(24 * n_tensors + 13 * n_keys, f"a header of {n_tensors} tensors and {n_keys} keys")
    return version, n_tensors, n_keys


def _read_metadata(cur: _Cursor, n_keys: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for i in range(n_keys):
        key = cur.string(f"metadata key {i}")
        if key in metadata:
            raise cur.error(f"metadata key {key!r} appears twice")
        what = f"metadata key {key!r}"
        value_type = cur.unpack(_U32, what)
        metadata[key] = _read_array(cur, what, 1) if value_type == _ARRAY else _read_value(cur, value_type, what)
    return metadata


def _read_value(cur: _Cursor, value_type: int, what: str) -> Any:
    if value_type == _STRING:
        return cur.string(what)
    if value_type not in _SCALARS:
        raise cur.error(f"{what} has the unknown value type {value_type}")
    value = cur.unpack(struct.Struct("<" + _SCALARS[value_type]), what)
    if value_type != _BOOL:
        return value
    if value > 1:
        raise cur.error(f"{what} is a bool stored as {value}")
    return value == 1


def _read_array(cur: _Cursor, what: str, depth: int) -> Any:
    """A list of strings or of arrays, or a numpy array of numbers or bools; inside another, lists of none or one."""
    element, count = cur.unpack(_U32, what), cur.unpack(_U64, what)
    if element == _STRING:
        return cur.strings(count, what)
    if element == _ARRAY:
        if depth == MAX_NESTING:
            raise cur.error(f"{what} nests arrays deeper than {MAX_NESTING}")
        cur.need(12 * count, what)
        return [_read_array(cur, what, depth + 1) for _ in range(count)]
    if element not in _SCALARS:
        raise cur.error(f"{what} is an array of the unknown value type {element}")
    dtype = np.dtype("<" + _SCALARS[element])
    cur.need(count * dtype.itemsize, what)
    values = np.frombuffer(cur.data, dtype, count, cur.pos).copy()  # aligned, and does not pin the file
    cur.pos += values.nbytes
    if element == _BOOL:
        if count and values.max() > 1:
            raise cur.error(f"{what} holds a bool stored as {values.max()}")
        values = values.astype(np.bool_)
    return values.tolist() if depth > 1 and count < 2 else values  # whichever object is the smaller


def _read_records(cur: _Cursor, n_tensors: int) -> list[_Record]:
    records: dict[str, _Record] = {}
    for i in range(n_tensors):
        name = cur.string(f"the name of tensor {i}")
        what = f"tensor {name!r}"
        if name in records:
            raise cur.error(f"{what} appears twice")
        n_dims = cur.unpack(_U32, what)
        if not 1 <= n_dims <= MAX_DIMS:
            raise cur.error(f"{what} has {n_dims} dimensions; 1 to {MAX_DIMS} are allowed")
        dims = tuple(cur.unpack(_U64, what) for _ in range(n_dims))
        if 0 in dims:
            raise cur.error(f"{what} has a dimension of size 0")
        records[name] = _Record(name, dims[::-1], cur.unpack(_U32, what), cur.unpack(_U64, what))
    return list(records.values())


def _alignment(cur: _Cursor, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or value <= 0 or value & (value - 1):
        raise cur.error(f"metadata key 'general.alignment' is {value!r}, not a power of two")
    return value


def _check_apart(cur: _Cursor, tensors: Iterable[GGUFTensor]) -> None:
    """No two tensors may share bytes; one of unknown size holds at least its first."""
    for a, b in pairwise(sorted(tensors, key=lambda t: t.offset)):
        if a.offset + (a.nbytes or 1) > b.offset:
            raise cur.error(f"tensors {a.name!r} and {b.name!r} overlap at byte {b.offset}")
