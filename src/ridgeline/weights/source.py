"""Where packed tensors come from: one protocol over GGUF files, safetensors files and seeded random weights.

Owns the plain records `TensorInfo` and `Raw`. A source hands out tensors under the file's own names, in the
file's own format, by rows; renaming, conversion and placement belong to the loader.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from ridgeline.errors import ModelFileError, Unsupported
from ridgeline.quant.format import FORMATS, get_format, row_bytes
from ridgeline.quant.pack import F32, U8
from ridgeline.weights.gguf import GGUFFile
from ridgeline.weights.safetensors import SafetensorsFile, open_sharded

U64 = npt.NDArray[np.uint64]


class TensorInfo(msgspec.Struct, frozen=True):
    """Row-major shape and format name, as stored (the format may be one that `read` refuses)."""

    shape: tuple[int, ...]
    format: str


class Raw(msgspec.Struct, frozen=True):
    """A tensor, or some of its rows, still packed.

    `data` is uint8 [rows, row_bytes] with rows = product of shape[:-1] (1 for a 1-D tensor), often a
    read-only view.
    """

    format: str
    shape: tuple[int, ...]
    data: U8

    def float32(self) -> F32:
        """The values, float32 in `shape`; may be a read-only view when the format is f32."""
        return FORMATS[self.format].unpack(self.data).reshape(self.shape)


class WeightSource(Protocol):
    """Named packed tensors. `read(rows=...)` takes a slice with step 1 over the rows (product of shape[:-1])
    and returns shape [n, K]; on a 1-D tensor the slice is over its elements. Errors name the file and the
    tensor.
    """

    def names(self) -> Iterable[str]: ...

    def info(self, name: str) -> TensorInfo: ...

    def read(self, name: str, rows: slice | None = None) -> Raw: ...


class GGUFSource:
    """The tensors of one GGUF file (split files are refused)."""

    def __init__(self, file: GGUFFile) -> None:
        count = file.metadata.get("split.count", 1)
        if not isinstance(count, int) or count > 1:
            raise Unsupported(f"{file.path} is one part of a split model; merge the parts into one GGUF file")
        self.file, self.files = file, (file,)

    def names(self) -> Iterable[str]:
        return self.file.tensors.keys()

    def info(self, name: str) -> TensorInfo:
        return _info(self.file, name)

    def read(self, name: str, rows: slice | None = None) -> Raw:
        return _raw(_info(self.file, name), self.file.data(name), rows)


class SafetensorsSource:
    """The tensors of one .safetensors file, or of a directory holding one or an index of several."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            self._files = open_sharded(self.path)
        else:
            file = SafetensorsFile(self.path)
            self._files = dict.fromkeys(file.tensors, file)
        self.files = tuple(dict.fromkeys(self._files.values()))

    def names(self) -> Iterable[str]:
        return self._files.keys()

    def info(self, name: str) -> TensorInfo:
        return _info(self._file(name), name)

    def read(self, name: str, rows: slice | None = None) -> Raw:
        file = self._file(name)
        return _raw(_info(file, name), file.data(name), rows)

    def _file(self, name: str) -> SafetensorsFile:
        if name not in self._files:
            raise ModelFileError(f"{self.path} has no tensor {name!r}")
        return self._files[name]


class RandomSource:
    """Seeded random weights, made when read: matrices near N(0, 0.02) in `format`, 1-D tensors f32 ones.

    A pool of normal weights is packed once; a tensor is a sequence of pool chunks picked by a counter hash of
    (seed, name, row, column). So any slice is reproducible alone, the cost is a gather, and every format that
    can pack works; Unsupported names a format that cannot.
    """

    STD = 0.02
    POOL_CHUNKS = 1 << 14
    CHUNK = 64  # weights, rounded up to whole blocks

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], format: str, seed: int = 0) -> None:
        self.shapes, self.seed = dict(shapes), seed
        self.format = get_format(format)
        self.format.packer()  # refuses one that is read only, here rather than at the first read
        for name, shape in self.shapes.items():
            if len(shape) > 1 and shape[-1] % self.format.block:
                raise Unsupported(f"tensor {name!r} {shape}: rows are not whole {format} blocks of {self.format.block}")

    def names(self) -> Iterable[str]:
        return self.shapes.keys()

    def info(self, name: str) -> TensorInfo:
        if name not in self.shapes:
            raise ModelFileError(f"the random model has no tensor {name!r}")
        shape = self.shapes[name]
        return TensorInfo(shape, self.format.name if len(shape) > 1 else "f32")

    def read(self, name: str, rows: slice | None = None) -> Raw:
        info = self.info(name)
        if len(info.shape) < 2:
            ones = np.ones(info.shape, np.float32)
            return _raw(info, ones.reshape(-1).view(np.uint8), rows)
        start, stop = _bounds(rows, math.prod(info.shape[:-1]))
        shape = info.shape if rows is None else (stop - start, info.shape[-1])
        return Raw(info.format, shape, self._rows(name, start, stop, info.shape[-1]))

    def _rows(self, name: str, start: int, stop: int, k: int) -> U8:
        """Packed rows start..stop of a tensor, uint8 [stop - start, row_bytes]."""
        chunks = -(-k // self._chunk)  # per row
        digest = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=8).digest()
        counter = np.arange(start * chunks, stop * chunks, dtype=np.uint64)
        picks = _hash(counter, int.from_bytes(digest, "little")) & np.uint64(self.POOL_CHUNKS - 1)
        header, chunk = self._pool
        packed = chunk.take(picks.astype(np.intp), axis=0).reshape(stop - start, -1)
        packed = packed[:, : row_bytes(self.format, k) - header.size]
        return np.concatenate([np.broadcast_to(header, (stop - start, header.size)), packed], axis=1)

    @property
    def _chunk(self) -> int:
        return -(-self.CHUNK // self.format.block) * self.format.block

    @cached_property
    def _pool(self) -> tuple[U8, U8]:
        """The header that every row shares (empty where the format has none), and uint8 [POOL_CHUNKS, chunk's bytes]:
        the pool is packed as one row."""
        rng = np.random.default_rng(self.seed)
        normal = rng.standard_normal((1, self.POOL_CHUNKS * self._chunk), dtype=np.float32)
        normal *= np.float32(self.STD)
        header, chunks = np.split(self.format.pack(normal)[0], [self.format.row_header])
        return header, chunks.reshape(self.POOL_CHUNKS, -1)


def _hash(counter: U64, key: int) -> U64:
    """splitmix64's finaliser over uint64 counters, in place."""
    x = counter
    x += np.uint64(key)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    return x


def _info(file: GGUFFile | SafetensorsFile, name: str) -> TensorInfo:
    record = file.tensors.get(name)
    if record is None:
        raise ModelFileError(f"{file.path} has no tensor {name!r}")
    return TensorInfo(record.shape, record.format)


def _bounds(rows: slice | None, n: int) -> tuple[int, int]:
    if rows is None:
        return 0, n
    start, stop, step = rows.indices(n)
    assert step == 1, "rows must be consecutive"
    return start, max(start, stop)


def _raw(info: TensorInfo, flat: U8, rows: slice | None) -> Raw:
    """Shape a tensor's flat bytes as rows and cut them, without a copy."""
    fmt = FORMATS[info.format]
    if len(info.shape) < 2:
        n = math.prod(info.shape)
        start, stop = _bounds(rows, n)
        assert rows is None or fmt.block == 1, "a 1-D tensor in a block format is read whole"
        part = flat if rows is None else flat[start * fmt.block_bytes : stop * fmt.block_bytes]
        return Raw(info.format, info.shape if rows is None else (stop - start,), part.reshape(1, -1))
    n, k = math.prod(info.shape[:-1]), info.shape[-1]
    start, stop = _bounds(rows, n)
    data = flat.reshape(n, row_bytes(fmt, k))[start:stop]
    return Raw(info.format, info.shape if rows is None else (stop - start, k), data)
