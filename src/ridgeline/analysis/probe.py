"""What this machine does right now, measured by numpy: read bandwidth, float32 GEMM, core-to-core hand-over.

Run as a child process (`python -m ridgeline.analysis.probe THREADS`), which prints one JSON object: so BLAS can be
held to one thread per caller, and neither the parent's threads nor its memory are part of the figures.
Knows nothing of models, caches or settings.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence

BUSY_NS = 2000.0  # above this the other core was not running our process at all
_READ_MIB = (16, 32, 64, 128, 256)  # working sets, over all threads: from caches to memory
_ROUNDS, _ROUND_S = 5, 0.04
_GEMM = 1024


def handover_ns(limit_s: float = 0.3) -> float | None:
    """Half a round trip of one byte between two processes, in ns with Python's own 50: the best 64 in a row.

    About 85 where the two cores share a cache and 260 where they do not; None with one core or none idle.
    """
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        return None
    page = mmap.mmap(-1, mmap.PAGESIZE)
    child = os.fork()
    if child == 0:
        _echo(page, limit_s + 1)
    best = _round_trips(page, limit_s)
    page[0] = 255
    os.waitpid(child, 0)
    return best / 2 if best / 2 < BUSY_NS else None


def _echo(page: mmap.mmap, limit_s: float) -> None:
    """Answer until told to stop by 255; and not for ever, should the parent be gone."""
    end = time.perf_counter() + limit_s
    while page[0] != 255 and time.perf_counter() < end:
        for _ in range(1 << 14):
            page[64] = page[0]  # on another cache line
    os._exit(0)


def _round_trips(page: mmap.mmap, limit_s: float) -> float:
    best, end = float("inf"), time.perf_counter() + limit_s
    while time.perf_counter() < end:
        begin = time.perf_counter_ns()
        for value in range(1, 65):
            page[0] = value
            while page[64] != value:
                pass
        best = min(best, (time.perf_counter_ns() - begin) / 64)
    return best


def read_gb_s(threads: int, nbytes: int) -> float:
    """GB/s of `threads` threads that each re-read their own part of a working set of `nbytes`: the best round."""
    import numpy as np

    parts = [np.ones(nbytes // threads // 8, np.uint64) for _ in range(threads)]
    repeats = max(1, int(_ROUND_S * 30e9 / nbytes))
    work = [lambda a=a: [np.bitwise_or.reduce(a) for _ in range(repeats)] for a in parts]
    return repeats * sum(a.nbytes for a in parts) / _best_seconds(work) / 1e9


def fp32_gflops(threads: int) -> float:
    """GFLOP/s of one square float32 matrix product per thread: the best round."""
    import numpy as np

    sets = [[np.ones((_GEMM, _GEMM), np.float32) for _ in range(3)] for _ in range(threads)]
    work = [lambda a=a, b=b, c=c: [np.dot(a, b, out=c) for _ in range(2)] for a, b, c in sets]
    return threads * 2 * 2 * _GEMM**3 / _best_seconds(work) / 1e9


def _best_seconds(work: Sequence[Callable[[], object]]) -> float:
    """Shortest of several rounds in which all of `work` runs at once, a thread each; first start to last end."""
    return min(_round_seconds(work) for _ in range(_ROUNDS))


def _round_seconds(work: Sequence[Callable[[], object]]) -> float:
    gate = threading.Barrier(len(work))
    spans: list[tuple[float, float]] = []

    def timed(f: Callable[[], object]) -> None:
        gate.wait()
        begin = time.perf_counter()
        f()
        spans.append((begin, time.perf_counter()))

    threads = [threading.Thread(target=timed, args=(f,)) for f in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(end for _, end in spans) - min(begin for begin, _ in spans)


def main(threads: int) -> None:
    """threads 0: the hand-over alone, which needs no numpy; else everything, with a hand-over at both ends."""
    before = handover_ns()
    if threads == 0:
        print(json.dumps({"handover_ns": [before]}))
        return
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.putenv(name, "1")  # read by BLAS when numpy is imported, which nothing has done yet
    read = [[mib << 20, read_gb_s(threads, mib << 20)] for mib in _READ_MIB]
    gflops = fp32_gflops(threads)
    handover = [before, handover_ns()]
    print(json.dumps({"threads": threads, "fp32_gflops": gflops, "read": read, "handover_ns": handover}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
