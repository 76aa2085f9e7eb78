"""A counter that an engine process moves on as it works, and its parent watches: memory that both see, no messages.

The native loop counts at every barrier, so an engine that is stopped or stuck is known within a second or two, however
long an honest step takes.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile

import numpy as np
from numpy.typing import NDArray


class Progress:
    """The counter in a file of one page that has no name. `fd` is handed to the child."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, mmap.PAGESIZE)

    @classmethod
    def create(cls) -> Progress:
        """A new counter, at 0: nobody counts yet."""
        fd = os.memfd_create("ridgeline-progress") if hasattr(os, "memfd_create") else _nameless()
        os.ftruncate(fd, mmap.PAGESIZE)
        return cls(fd)

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
        if not self._memory.closed:
            self._memory.close()
            os.close(self.fd)


def _nameless() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
