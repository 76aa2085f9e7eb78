"""Pinned threads: each keeps to its core, the caller only while it works, and what cannot be pinned is refused."""

from __future__ import annotations

import contextlib
import os
import threading
import time

import pytest

from ridgeline.backends.cpu import _native, backend
from ridgeline.backends.cpu.backend import CPU
from ridgeline.config import EngineConfig
from ridgeline.cores import physical_cores
from ridgeline.errors import ConfigError

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system pins no threads")


def threads_of_this_process() -> set[int]:
    return {int(tid) for tid in os.listdir("/proc/self/task")}


def test_each_thread_is_bound_to_its_own_core() -> None:
    cores, before, own = physical_cores(), threads_of_this_process(), os.sched_getaffinity(0)
    pool = _native.Pool(len(cores), cores)
    bound = [os.sched_getaffinity(tid) for tid in threads_of_this_process() - before]
    assert sorted(map(sorted, bound)) == [[core] for core in cores[1:]] and os.sched_getaffinity(0) == own
    assert pool.threads == len(cores)


def test_the_caller_is_bound_while_it_works() -> None:
    core = physical_cores()[-1]
    pool, memory = _native.Pool(1, [core]), _native.Memory(1 << 20)
    _native.touch(pool, memory)
    working = threading.Thread(target=_native.read_gb_s, args=(pool, "", memory, 1 << 20, 60_000))
    own = os.sched_getaffinity(0)
    working.start()
    end = time.monotonic() + 10
    bound = False
    while working.is_alive() and not bound and time.monotonic() < end:
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            bound = os.sched_getaffinity(working.native_id or 0) == {core}
    working.join()
    assert bound and os.sched_getaffinity(0) == own


def test_the_caller_has_its_own_affinity_again() -> None:
    own = os.sched_getaffinity(0)
    pool = CPU(0, pin=True).pool
    _native.touch(pool, _native.Memory(1 << 20))
    assert os.sched_getaffinity(0) == own


def test_fewer_cores_than_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "physical_cores", lambda: (0,))
    with pytest.raises(ConfigError, match="2 threads cannot be pinned to the 1 physical cores"):
        CPU(2, pin=True)
    monkeypatch.setattr(backend, "physical_cores", lambda: (1023,))
    with pytest.raises(ConfigError, match="pinned to cores 1023 .*cpu 1023.*do not pin"):
        CPU(1, pin=True)
    with pytest.raises(ConfigError, match="pin is for backend cpu"):
        EngineConfig("m", backend="reference", pin=True)


@pytest.mark.parametrize(("threads", "cpus"), [(2, [0]), (1, [-1]), (1, [0, 1]), (1, [1 << 20])])
def test_cpus_that_do_not_fit(threads: int, cpus: list[int]) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        _native.Pool(threads, cpus)
