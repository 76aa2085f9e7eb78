"""A program's parameters in memory: weights in panels, and vectors; packed now, or read as they were packed before.

Losslessly: `held_as` names the format whose bytes a panel matches. Must not know where packed files lie.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from ridgeline.backends.base import ReadWeight
from ridgeline.backends.cpu import _native
from ridgeline.errors import ModelFileError, Unsupported
from ridgeline.program.ir import Weight
from ridgeline.weights.packed import PackedFile, PackedWeights, Place, places_of
from ridgeline.weights.source import Raw

LAYOUT = f"panels {_native.LAYOUT_VERSION} {sys.byteorder}"
UNPACKED = ("q8_k",)  # stored formats without panels of their own: unpacked here, and held in float32
_ALIGN = 4096  # of weights, for the page table's and the prefetchers' sake
_LINE = 64  # vectors are padded to whole lines


class Panels(msgspec.Struct, frozen=True):
    """What packs and reads: the pool whose threads first touch what they will use, and the formats that are held."""

    pool: _native.Pool
    held_as: Mapping[str, str]

    def load(
        self, weights: Sequence[Weight], vectors: Sequence[Weight], read: ReadWeight, packed: PackedWeights | None
    ) -> tuple[list[_native.PackedWeight], list[NDArray[np.float32]]]:
        """Packed weights and vectors, in their order; from the packed file where there is one, else into it."""
        stored = [w for w in vectors if w.constant is None]
        places = self._places(weights, stored)
        file = packed.find(LAYOUT, [*weights, *stored], places) if packed else None
        memory = self._read(file, places) if file else None
        if packed and file and memory is None:
            packed.damaged(file.path)
        if memory is None:
            memory = _memory(places)
            for w, p in zip(weights, places, strict=False):
                self.pack(w, read(w), memory, p.offset)
            for w, p in zip(stored, places[len(weights) :], strict=True):
                _floats(memory, p)[:] = vector(w, read)
            if packed:
                self._keep(packed, [*weights, *stored], places, memory)
        held = [_native.PackedWeight(p.format, p.rows, p.cols, memory, p.offset) for p in places[: len(weights)]]
        by_name = {p.name: _floats(memory, p) for p in places[len(weights) :]}
        return held, [vector(w, read) if w.constant is not None else by_name[w.name] for w in vectors]

    def pack(self, w: Weight, raw: Raw, memory: _native.Memory, offset: int) -> _native.PackedWeight:
        """One weight, into memory that holds zeros."""
        if self.held_as.get(raw.format) != w.format:
            raise Unsupported(f"{w.name} is stored as {raw.format}, which the cpu backend does not hold as {w.format}")
        fmt, data = packable(raw)
        try:
            return _native.PackedWeight(self.pool, fmt, data, raw.shape[0], raw.shape[1], memory, offset)
        except ValueError as wrong:
            raise ModelFileError(f"{w.name}: {wrong}") from wrong

    def _places(self, weights: Sequence[Weight], vectors: Sequence[Weight]) -> list[Place]:
        """Weights one after the other, then vectors."""
        for w in weights:
            if w.format not in self.held_as.values():
                raise Unsupported(f"the cpu backend does not hold weights as {w.format!r} ({w.name})")
        stored = {held: stored for stored, held in self.held_as.items() if stored not in UNPACKED}
        packed = [replace(w, format=stored[w.format]) for w in weights]  # the native side knows formats of files
        matrices = places_of(packed, [_native.packed_bytes(w.format, *w.shape) for w in packed], _ALIGN)
        end = -(-(matrices[-1].offset + matrices[-1].nbytes) // _ALIGN) * _ALIGN if matrices else 0
        lines = [-(-4 * w.shape[0] // _LINE) * _LINE for w in vectors]
        return matrices + places_of(vectors, lines, _LINE, end)

    def _read(self, file: PackedFile, places: Sequence[Place]) -> _native.Memory | None:
        """The file's data, or None where its sums do not agree."""
        memory = _memory(places)
        try:
            with file.path.open("rb") as f:
                sums = _native.read_panels(self.pool, f.fileno(), file.start, memory, _panels(places))
                os.utime(f.fileno())  # used now
        except (OSError, RuntimeError):
            return None
        return memory if sums == [p.checksum for p in file.header.places] else None

    def _keep(
        self, packed: PackedWeights, weights: Sequence[Weight], places: Sequence[Place], memory: _native.Memory
    ) -> None:
        sums = _native.checksums(self.pool, memory, _panels(places))
        summed = [msgspec.structs.replace(p, checksum=s) for p, s in zip(places, sums, strict=True)]
        packed.keep(LAYOUT, weights, summed, memory.array()[: _total(places)])


def packable(raw: Raw) -> tuple[str, NDArray[np.uint8]]:
    """A matrix as the native side packs it: format and bytes."""
    if raw.format in UNPACKED:
        raw = Raw("f32", raw.shape, raw.float32().view(np.uint8))
    return raw.format, np.ascontiguousarray(raw.data).reshape(-1)


def vector(w: Weight, read: ReadWeight) -> NDArray[np.float32]:
    """A vector parameter, as it is computed or stored."""
    values = np.array(w.constant, np.float32) if w.constant is not None else read(w).float32()
    return np.ascontiguousarray(values, np.float32).reshape(-1)


def _total(places: Sequence[Place]) -> int:
    return -(-max((p.offset + p.nbytes for p in places), default=0) // _ALIGN) * _ALIGN


def _memory(places: Sequence[Place]) -> _native.Memory:
    return _native.Memory(max(_total(places), _ALIGN))


def _panels(places: Sequence[Place]) -> list[tuple[int, int, int]]:
    """(offset, bytes, bytes of a panel); a vector is one panel."""
    return [(p.offset, p.nbytes, p.nbytes // (-(-p.rows // _native.PANEL) if p.cols > 1 else 1)) for p in places]


def _floats(memory: _native.Memory, p: Place) -> NDArray[np.float32]:
    return memory.array()[p.offset : p.offset + 4 * p.rows].view(np.float32)
