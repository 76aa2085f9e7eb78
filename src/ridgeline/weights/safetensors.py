"""A bounded reader of safetensors files, single or sharded by an index.

The file is hostile input: header length, JSON shape, offsets and shard names are checked before use, and
nothing is executed or unpickled. Layout: 8-byte little-endian header length, a JSON object, then the tensors'
bytes (the safetensors format description). Must not know what any tensor means.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ridgeline.errors import ModelFileError, ModelNotFound, Unsupported
from ridgeline.quant.format import FORMATS
from ridgeline.quant.pack import U8
from ridgeline.weights.mapped import RESIDENT, let_go, map_file

MAX_HEADER = 32 << 20  # real ones stay below 16 MB; Python objects cost up to 36 bytes per byte of JSON
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_FORMAT_OF_DTYPE = {fmt.safetensors: fmt for fmt in FORMATS.values() if fmt.safetensors}


class SafetensorsTensor(msgspec.Struct, frozen=True):
    """One tensor's record; `format` is a name in FORMATS, or the file's dtype in lower case, which reading
    refuses.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    offset: int  # from the start of the file
    nbytes: int


class SafetensorsFile:
    """A parsed header over a read-only mapping; `data(name)` gives a tensor's bytes without a copy."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._bytes = map_file(self.path)
        self._handed = 0  # bytes of tensors, since they were let go
        size = len(self._bytes)
        length = int.from_bytes(self._bytes[:8], "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise self._error(f"a header of {length} bytes does not fit (file {size} bytes, limit {MAX_HEADER})")
        header = parse_json(self._bytes[8 : 8 + length], self.path)
        header.pop("__metadata__", None)
        self._data_offset = 8 + length
        self.tensors = {name: self._record(name, entry, 8 + length) for name, entry in header.items()}
        self._check_overlap()

    @property
    def header(self) -> bytes:
        """All that comes before the tensors."""
        return self._bytes[: self._data_offset]

    def _error(self, message: str) -> ModelFileError:
        return ModelFileError(f"{self.path}: {message}")

    def _record(self, name: str, entry: Any, base: int) -> SafetensorsTensor:
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise self._error(f"tensor {name!r} must have exactly dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str):
            raise self._error(f"tensor {name!r} has the dtype {dtype!r}")
        if not _all_sizes(shape):
            raise self._error(f"tensor {name!r} has a shape that is not a list of non-negative integers")
        if not _all_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise self._error(f"tensor {name!r} has data_offsets that are not [begin, end]")
        begin, end = offsets
        if end > len(self._bytes) - base:
            raise self._error(f"tensor {name!r} ends at byte {base + end}, past the end ({len(self._bytes)})")
        fmt = _FORMAT_OF_DTYPE.get(dtype)
        if fmt and math.prod(shape) * fmt.block_bytes != end - begin:
            raise self._error(f"tensor {name!r} {tuple(shape)} of {dtype} does not take {end - begin} bytes")
        stored = fmt.name if fmt else dtype.lower()
        if fmt is None and stored in FORMATS:  # a format of ours that this file type does not have: sizes unchecked
            raise self._error(f"tensor {name!r} has the dtype {dtype!r}")
        return SafetensorsTensor(name, tuple(shape), stored, base + begin, end - begin)

    def _check_overlap(self) -> None:
        end, before = 0, ""
        for record in sorted(self.tensors.values(), key=lambda r: (r.offset, r.nbytes)):
            if record.offset < end:
                raise self._error(f"tensors {before!r} and {record.name!r} overlap")
            end, before = record.offset + record.nbytes, record.name

    def data(self, name: str) -> U8:
        """The tensor's bytes, uint8 [nbytes], read-only and zero-copy; Unsupported when its dtype is."""
        record = self.tensors.get(name)
        if record is None:
            raise self._error(f"has no tensor {name!r}")
        if record.format not in FORMATS:
            raise Unsupported(
                f"{self.path}: tensor {name!r} is {record.format}; supported: {', '.join(_FORMAT_OF_DTYPE)}"
            )
        self._handed += record.nbytes
        if self._handed > RESIDENT:
            let_go(self._bytes)
            self._handed = record.nbytes
        return np.frombuffer(self._bytes, np.uint8, record.nbytes, record.offset)


def open_sharded(directory: Path | str) -> dict[str, SafetensorsFile]:
    """Tensor name to the opened file that holds it, from model.safetensors or the index and its shards."""
    folder = Path(directory)
    if (folder / SINGLE_FILE).is_file():
        single = SafetensorsFile(folder / SINGLE_FILE)
        return dict.fromkeys(single.tensors, single)
    index = folder / INDEX_FILE
    if not index.is_file():
        pickled = any(folder.glob("pytorch_model*.bin"))
        instead = "; its pytorch_model.bin is not read, as pickle runs code: convert to safetensors" if pickled else ""
        raise ModelNotFound(f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}{instead}")
    weight_map = read_index(index)
    for shard in sorted(set(weight_map.values())):
        if not (folder / shard).is_file():
            raise ModelNotFound(f"{folder}: shard {shard} is missing; fetch the model again")
    shards = {shard: SafetensorsFile(folder / shard) for shard in sorted(set(weight_map.values()))}
    for name, shard in weight_map.items():
        if name not in shards[shard].tensors:
            raise ModelFileError(f"{index}: tensor {name!r} is not in its shard {shard!r}")
    return {name: shards[shard] for name, shard in weight_map.items()}


def read_index(path: Path) -> dict[str, str]:
    """The index's weight_map: tensor name to shard, each shard a plain file name beside the index."""
    if path.stat().st_size > MAX_HEADER:
        raise ModelFileError(f"{path} is larger than {MAX_HEADER} bytes")
    weight_map = parse_json(path.read_bytes(), path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{path} has no 'weight_map' object")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain(shard):
            raise ModelFileError(
                f"{path}: tensor {name!r} names the shard {shard!r}, not a .safetensors file beside it"
            )
    return weight_map


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
    """A strict JSON object: UTF-8, no repeated keys, bounded nesting; else ModelFileError naming `path`."""
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as e:
        raise ModelFileError(f"{path}: its JSON is not valid: {e}") from e
    if not isinstance(value, dict):
        raise ModelFileError(f"{path}: its JSON is not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key appears twice")
    return value


def _all_sizes(value: Any) -> bool:
    """A list of integers in 0..2^63 - 1 (JSON's true and 1.0 are not integers)."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def _is_plain(name: str) -> bool:
    """A name that a file can have (at most 255 bytes) and that stays in its folder."""
    printable = name.endswith(".safetensors") and name.isprintable() and not set(name) & set("/\\:")
    return printable and len(name.encode()) <= 255
