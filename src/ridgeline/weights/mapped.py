"""A weight file as read-only bytes: opened, measured and mapped in one place.

Owns the file handle's life: views keep the mapping alive, nothing has to be closed. Must not know any file
format. Hazard: if another process truncates a mapped file, touching the lost pages kills this process; the
cache therefore only ever replaces whole files by rename.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from ridgeline.errors import ModelFileError, ModelNotFound

RESIDENT = 16 << 20  # bytes of a mapping that readers may leave in this process's memory


def let_go(mapped: mmap.mmap | bytes) -> None:
    """Count the pages of a mapping no longer as this process's memory; what is touched again is read again."""
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def map_file(path: Path) -> mmap.mmap | bytes:
    """The file's bytes (`b""` when it is empty, which cannot be mapped); typed errors name the path."""
    try:
        if not path.is_file():
            raise ModelNotFound(f"{path} is not a file")
        with path.open("rb") as f:
            if f.seek(0, 2) == 0:
                return b""
            return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as e:
        raise ModelFileError(f"{path} cannot be read: {e.strerror}") from e
