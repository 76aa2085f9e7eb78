"""Packed weights between runs: files that hold a model's weights as a backend lays them out in memory.

Owns the files' names, headers and checks, and which go when they grow too many. A file is written beside its name and
renamed, and used only if it is whole, ours and of this very model; whoever reads it compares the sums. Must not know
what a layout means.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ridgeline.program.ir import Weight
from ridgeline.weights.fingerprint import fingerprint
from ridgeline.weights.load import Checkpoint
from ridgeline.weights.source import GGUFSource, SafetensorsSource

FOLDER = "packed"
PACKER_VERSION = 1  # raise it where the same stored weights are quantised or arranged to other bytes than before
_SUFFIX = ".packed"
_MAGIC = b"RLPK\x00\x01\x00\x00"
_ALIGN = 4096
_MAX_HEADER = 64 << 20
_SPARE_DISK = 1 << 30  # bytes left free by writing
_SUMMED = 1 << 20  # words at a time


class Place(msgspec.Struct, frozen=True, array_like=True):
    """A packed weight: its bytes lie at `offset` of the data, and sum to `checksum`."""

    name: str
    format: str
    rows: int
    cols: int
    offset: int
    nbytes: int
    checksum: int = 0


class Header(msgspec.Struct, frozen=True):
    """What a file holds. `identity` tells the model's stored weights from all others, `source` is their file."""

    identity: str
    source: str
    layout: str
    nbytes: int
    places: list[Place]


class PackedFile(msgspec.Struct, frozen=True):
    """A file whose header is good. The data begins at byte `start`."""

    path: Path
    header: Header
    start: int
    used: float

    @property
    def nbytes(self) -> int:
        return self.start + self.header.nbytes


class PackedWeights(msgspec.Struct, frozen=True):
    """The packed weights of one model: where they are looked for and kept. `notes` are for the user."""

    folder: Path
    limit: int
    identity: str
    source: str
    notes: list[str] = msgspec.field(default_factory=list)

    def find(self, layout: str, weights: Sequence[Weight], places: Sequence[Place]) -> PackedFile | None:
        """The file of these very weights in this layout, if there is one."""
        path = self._path(layout, weights)
        if not path.exists():
            return None
        found = read_header(path)
        if found is not None:
            unsummed = [msgspec.structs.replace(p, checksum=0) for p in found.header.places]
            if (self.identity, layout, list(places)) == (found.header.identity, found.header.layout, unsummed):
                return found
        self.damaged(path)
        return None

    def keep(self, layout: str, weights: Sequence[Weight], places: Sequence[Place], data: np.ndarray) -> None:
        """Write the file, and let go of the longest unused ones beyond the limit. Where there is no room, nothing."""
        if data.nbytes > self.limit:
            return
        header = Header(self.identity, self.source, layout, data.nbytes, list(places))
        with contextlib.suppress(OSError):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            disk = os.statvfs(self.folder)
            if disk.f_bavail * disk.f_frsize < data.nbytes + _SPARE_DISK:
                return
            path = self._path(layout, weights)
            _write(path, header, data)
            prune(self.folder, self.limit, spared=path)

    def damaged(self, path: Path) -> None:
        """Note that a file is not what was written; it is replaced by what is packed now."""
        self.notes.append(f"packed weights {path.name} are damaged and were made again")

    def _path(self, layout: str, weights: Sequence[Weight]) -> Path:
        digest = hashlib.blake2b(f"{self.identity}\n{layout}\n{PACKER_VERSION}".encode(), digest_size=12)
        for w in weights:
            digest.update(repr(w).encode())
        return self.folder / (digest.hexdigest() + _SUFFIX)


def packed_weights(checkpoint: Checkpoint, cache: Path, limit: int) -> PackedWeights | None:
    """Where the packed weights of a checkpoint are kept; None where nothing is: without a limit, or without files."""
    source = checkpoint.source
    if limit == 0 or not isinstance(source, (GGUFSource, SafetensorsSource)):
        return None
    return PackedWeights(cache / FOLDER, limit, identity(checkpoint), str(Path(checkpoint.where).resolve()))


def identity(checkpoint: Checkpoint) -> str:
    """What tells the weights of a checkpoint from all others, without reading them: where they are files, whose sizes,
    times and headers."""
    source = checkpoint.source
    if not isinstance(source, (GGUFSource, SafetensorsSource)):
        return fingerprint(checkpoint)
    digest = hashlib.blake2b(digest_size=16)
    for file in source.files:
        stat = file.path.stat()
        digest.update(f"{file.path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}\n".encode())
        digest.update(file.header)
    for name, scale in sorted(checkpoint.scales.items()):
        digest.update(name.encode() + scale.tobytes())
    return digest.hexdigest()


def read_header(path: Path) -> PackedFile | None:
    """The header of a packed file, or None for one that is missing, cut, damaged there, or somebody else's."""
    try:
        with path.open("rb") as f:
            stat = os.fstat(f.fileno())
            head = f.read(len(_MAGIC) + 8 + 16)
            size = int.from_bytes(head[len(_MAGIC) : len(_MAGIC) + 8], "little")
            if not head.startswith(_MAGIC) or size > _MAX_HEADER or stat.st_uid != os.geteuid():
                return None
            data = f.read(size)
        if hashlib.blake2b(data, digest_size=16).digest() != head[-16:]:
            return None
        header = msgspec.msgpack.decode(data, type=Header)
    except (OSError, msgspec.MsgspecError):
        return None
    start = _start(size)
    whole = stat.st_size == start + header.nbytes
    inside = all(p.offset >= 0 and p.nbytes >= 0 and p.offset + p.nbytes <= header.nbytes for p in header.places)
    return PackedFile(path, header, start, stat.st_mtime) if whole and inside else None


def listing(folder: Path) -> list[PackedFile]:
    """The good files, longest unused first."""
    found = (read_header(path) for path in folder.glob("*" + _SUFFIX))
    return sorted((f for f in found if f is not None), key=lambda f: f.used)


def prune(folder: Path, limit: int, spared: Path | None = None) -> list[Path]:
    """Remove what no run can use, then the longest unused, until at most `limit` bytes are left; what was removed."""
    good = listing(folder)
    kept = {f.path for f in good if Path(f.header.source).exists()}
    gone = [p for p in folder.glob("*") if p not in kept and (p.suffix == _SUFFIX or _abandoned(p))]
    total = sum(f.nbytes for f in good if f.path in kept)
    for f in good:
        if total > limit and f.path in kept and f.path != spared:
            gone.append(f.path)
            total -= f.nbytes
    for path in gone:
        with contextlib.suppress(OSError):
            path.unlink()
    return gone


def verify(file: PackedFile) -> bool:
    """Whether every weight sums to what it did when it was written."""
    data = np.memmap(file.path, np.uint8, "r", file.start, (file.header.nbytes,))
    return all(checksum(data[p.offset : p.offset + p.nbytes]) == p.checksum for p in file.header.places)


def checksum(data: np.ndarray) -> int:
    """Sum of w[i] * (2 i + 1) over the 64-bit words, mod 2^64: what backends compute while they read."""
    words = np.frombuffer(data, np.uint64)
    total = 0
    for at in range(0, len(words), _SUMMED):
        part = words[at : at + _SUMMED]
        total += int((part * (2 * np.arange(at, at + len(part), dtype=np.uint64) + 1)).sum(dtype=np.uint64))
    return total % (1 << 64)


def _start(header_bytes: int) -> int:
    return -(-(len(_MAGIC) + 8 + 16 + header_bytes) // _ALIGN) * _ALIGN


def _abandoned(path: Path) -> bool:
    """Whether a file is what an interrupted write left behind."""
    return path.suffix == ".tmp" and time.time() - path.stat().st_mtime > 3600


def _write(path: Path, header: Header, data: Any) -> None:
    import tempfile

    encoded = msgspec.msgpack.encode(header)
    head = _MAGIC + len(encoded).to_bytes(8, "little") + hashlib.blake2b(encoded, digest_size=16).digest() + encoded
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")  # of mode 0600
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(head.ljust(_start(len(encoded)), b"\0"))
            f.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def places_of(weights: Iterable[Weight], sizes: Iterable[int], align: int, start: int = 0) -> list[Place]:
    """The weights one after the other from `start` on, each at a multiple of `align`; vectors as of one column."""
    places, at = [], start
    for w, nbytes in zip(weights, sizes, strict=True):
        places.append(Place(w.name, w.format, w.shape[0], w.shape[1] if len(w.shape) > 1 else 1, at, nbytes))
        at += -(-nbytes // align) * align
    return places
