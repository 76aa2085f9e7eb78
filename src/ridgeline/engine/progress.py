"""A counter that an engine process moves on as it works, and its parent watches: memory that both see, no messages.

The native loop counts at every barrier, so an engine that is stopped or stuck is known within a second or two, however
long an honest step takes.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import tempfile
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


class Progress:
    """The counter, in a file of one page that has no name."""

    def __init__(self, fd: int) -> None:
        """Over a file that was handed over; it may be closed afterwards."""
        self._memory = mmap.mmap(fd, mmap.PAGESIZE)
        self._fd = -1

    @classmethod
    def create(cls) -> Progress:
        """A new counter, at 0: nobody counts yet. OSError where the system has no file for it."""
        fd = os.memfd_create("ridgeline-progress") if hasattr(os, "memfd_create") else _nameless()
        try:
            os.ftruncate(fd, mmap.PAGESIZE)
            made = cls(fd)
        except BaseException:
            os.close(fd)
            raise
        made._fd = fd
        return made

    @contextlib.contextmanager
    def handed_over(self) -> Iterator[int]:
        """The file's descriptor, once, for a child to inherit; then it is closed here."""
        try:
            yield self._fd
        finally:
            os.close(self._fd)

    @property
    def value(self) -> int:
        try:
            return int.from_bytes(self._memory[:8], sys.byteorder)
        except ValueError:  # closed meanwhile, by another thread
            return 0

    def array(self) -> NDArray[np.uint64]:
        """The counter as memory [1] for who counts; it cannot be closed from then on."""
        return np.frombuffer(self._memory, np.uint64, 1)

    def close(self) -> None:
        """For who watches; any number of times."""
        self._memory.close()


def _nameless() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
