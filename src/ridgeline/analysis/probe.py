"""What this machine does right now: native loops that only load, only multiply, or only meet at a barrier.

The loops use the instructions of the CPU backend's best kernels, huge pages, and one contiguous share of memory per
thread, as packed weights are read. Knows nothing of models, caches or settings.
"""

from __future__ import annotations

from ridgeline.backends.cpu import _native
from ridgeline.errors import RidgelineError

BUSY_NS = 2000.0  # a barrier slower than this waited for a thread that had no core
MOST_BYTES = 1 << 30  # of one pass; what is larger is in no cache, and read at the same rate
_PAGE = 4096


class Probe:
    """`threads` threads with memory to read up to `nbytes`. RidgelineError where the system gives neither."""

    def __init__(self, threads: int, nbytes: int = 0) -> None:
        try:
            self._pool = _native.Pool(threads)
            self._memory = _native.Memory(self._size(nbytes))
            _native.touch(self._pool, self._memory)
        except (MemoryError, RuntimeError) as wrong:
            raise RidgelineError(f"the hardware could not be measured: {wrong}") from wrong
        self._isa = _native.isa()

    def read_gb_s(self, nbytes: int, seconds: float) -> float:
        """GB/s of re-reading `nbytes`, all threads together, for about so long and at least twice."""
        size = self._size(nbytes)
        once = _native.read_gb_s(self._pool, self._isa, self._memory, size, 1)
        passes = max(1, int(seconds * once * 1e9 / size))
        return _native.read_gb_s(self._pool, self._isa, self._memory, size, passes)

    def _size(self, nbytes: int) -> int:
        """A page per thread at least, and no more than tells the rate of any larger set."""
        return min(max(nbytes, self._pool.threads * _PAGE), MOST_BYTES)

    def peak_gops(self, kind: str) -> float:
        """1e9 operations a second, a multiply-add being two: int8, bf16 or f32. 0: there is no such instruction."""
        return _native.peak_gops(self._pool, self._isa, kind)

    def barrier_ns(self) -> float | None:
        """Nanoseconds of one round of a barrier; None for a single thread, or if one of them got no core."""
        if self._pool.threads < 2:
            return None
        ns = _native.barrier_ns(self._pool)
        return ns if ns < BUSY_NS else None


def load_only(nbytes: int, threads: int, seconds: float = 0.3) -> float:
    """GB/s of a loop that only loads `nbytes` again and again: the ceiling of whatever reads that many per step.

    Small sets are partly served by caches, so the figure belongs to its size.
    """
    return Probe(threads, nbytes).read_gb_s(nbytes, seconds)
