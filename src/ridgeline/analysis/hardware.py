"""The machine: what it is, and its peaks, measured or assumed. Every figure says where it comes from.

Measuring is probe.py's work; results are kept in the cache directory, per CPU and core count, with their date. Must
not know programs or models.
"""

from __future__ import annotations

import datetime
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ridgeline.analysis.probe import Probe
from ridgeline.cores import available_cores
from ridgeline.errors import ConfigError

FILE = "hardware.json"
MEASURE_TRIES = 3
SHARED_CACHE_NS = 150.0  # a barrier quicker than this stays inside one last-level cache
_NEAR_BYTES, _FAR_BYTES = 1 << 19, 1 << 25  # per thread: in any second-level cache; over its share of the last
_READ_MIB = (4, 16, 32, 64, 128, 256)  # working sets in between
_ROUNDS, _ROUND_S = 12, 0.01
_LOAD_ONLY_S = 0.3

_ISA = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "neon", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
_INT8_DOT = ("avx_vnni", "avx512_vnni", "asimddp", "i8mm", "amx_int8")
# Assumed where nothing was measured, on the low side of what is sold today.
_DEFAULT_GB_S, _DEFAULT_THREAD_GB_S, _DEFAULT_THREAD_GFLOPS = 20.0, 12.0, 40.0


class Peaks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Upper limits for `threads` threads. `read` is (working set in bytes, GB/s) ascending, the last from memory.

    bf16_gflops is 0 where there is no instruction for it. barrier_ns: of two threads, before and after the
    measurement. source: "measured DATE", or "assumed" for defaults.
    """

    threads: int
    fp32_gflops: float
    int8_gops: float
    read: tuple[tuple[int, float], ...]
    barrier_ns: tuple[float | None, ...]
    source: str
    bf16_gflops: float = 0.0

    @property
    def dram_gb_s(self) -> float:
        return self.read[-1][1]

    @property
    def state(self) -> str:
        """state_of the barriers."""
        return state_of(self.barrier_ns)

    def read_gb_s(self, working_set: float) -> float:
        """GB/s of re-reading `working_set` bytes, between the measured sizes by their logarithm."""
        if working_set <= self.read[0][0]:
            return self.read[0][1]
        for (small, fast), (large, slow) in zip(self.read, self.read[1:], strict=False):
            if working_set <= large:
                part = math.log(working_set / small) / math.log(large / small)
                return fast + part * (slow - fast)
        return self.dram_gb_s


def state_of(barrier_ns: Sequence[float | None]) -> str:
    """Whether two cores share a last-level cache: together, apart, changing, unknown.

    Virtual machines are moved while they run, and bandwidth differs by half: compare figures of one state only.
    """
    shared = {ns < SHARED_CACHE_NS for ns in barrier_ns if ns is not None}
    if len(shared) != 1:
        return "changing" if shared else "unknown"
    return "together" if shared.pop() else "apart"


class Measurement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What hardware.json holds: peaks by thread count, for one CPU."""

    cpu: str
    cores: int
    date: str
    peaks: tuple[Peaks, ...]


@dataclass(frozen=True)
class Machine:
    """What the operating system says: CPU name, usable cores, instruction sets of interest, memory in bytes."""

    cpu: str
    cores: int
    isa: tuple[str, ...]
    memory: int


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    """This machine."""
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    rows = {key.strip(): value.strip() for key, value in pairs}
    flags = (rows.get("flags") or rows.get("Features") or "").split()
    name = rows.get("model name") or platform.processor() or platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(name, available_cores(), tuple(f for f in _ISA if f in flags), memory)


def measure(threads: int) -> Peaks:
    """Peaks of `threads` threads, measured now in one or two seconds; again if the machine's state changed."""
    sizes = _sizes(threads)
    probe = Probe(threads, sizes[-1])
    for _ in range(MEASURE_TRIES):
        before = barrier()
        read = [(n, max(probe.read_gb_s(n, _ROUND_S) for _ in range(_ROUNDS))) for n in sizes]
        int8, bf16, f32 = map(probe.peak_gops, ("int8", "bf16", "f32"))
        barriers = (before, barrier())
        if state_of(barriers) != "changing":
            break
    return Peaks(threads, f32, int8, tuple(read), barriers, f"measured {_today()}", bf16)


class Ceilings:
    """What `threads` threads can do at most, again and again between the rounds of a benchmark.

    The first working set is what the benchmark reads per step, the second one is memory's.
    """

    def __init__(self, threads: int, nbytes: int) -> None:
        self._threads, self._sizes = threads, sorted({nbytes, max(nbytes, _sizes(threads)[-1])})
        self._probe = Probe(threads, self._sizes[-1])

    def now(self) -> Peaks:
        """In less than a second."""
        before = barrier()
        read = [(n, self._probe.read_gb_s(n, _LOAD_ONLY_S)) for n in self._sizes]
        int8, bf16, f32 = map(self._probe.peak_gops, ("int8", "bf16", "f32"))
        return Peaks(self._threads, f32, int8, tuple(read), (before, barrier()), f"measured {_today()}", bf16)


def barrier() -> float | None:
    """Nanoseconds of a barrier of two threads now; None where unknown."""
    return Probe(2).barrier_ns() if available_cores() > 1 else None


def _sizes(threads: int) -> list[int]:
    """Working sets of all threads together, from the nearest caches to memory."""
    nearest, furthest = threads * _NEAR_BYTES, max(_READ_MIB[-1] << 20, threads * _FAR_BYTES)
    return [nearest, *(mib << 20 for mib in _READ_MIB if nearest < mib << 20 < furthest), furthest]


def measure_all(cache: Path) -> Measurement:
    """Measure 1, 2, 4, ... and all cores, and keep the result in `cache`."""
    here = machine()
    counts = sorted({*(1 << i for i in range(here.cores.bit_length())), here.cores})
    result = Measurement(here.cpu, here.cores, _today(), tuple(measure(n) for n in counts if n <= here.cores))
    temporary = cache / f"{FILE}.{os.getpid()}.tmp"
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.write_bytes(msgspec.json.encode(result))
        temporary.replace(cache / FILE)
    except OSError as wrong:
        raise ConfigError(f"the cache cannot be written ({wrong}); set XDG_CACHE_HOME") from wrong
    return result


def stored(cache: Path) -> Measurement | None:
    """The kept measurement, if it is of this CPU with these cores and intact."""
    try:
        found = msgspec.json.decode((cache / FILE).read_bytes(), type=Measurement)
    except (OSError, msgspec.DecodeError):
        return None
    here = machine()
    same = (found.cpu, found.cores) == (here.cpu, here.cores)
    return found if same and found.peaks and all(_sane(p) for p in found.peaks) else None


def peaks(threads: int, cache: Path) -> Peaks:
    """Peaks for `threads` threads (0 = all cores): of the nearest measured count, else assumed ones."""
    count = threads or available_cores()
    found = stored(cache)
    if found is None:
        return assumed(count, machine().isa)
    return min(found.peaks, key=lambda p: abs(p.threads - count))


def assumed(threads: int, isa: Sequence[str]) -> Peaks:
    """Low guesses for a machine that was never measured."""
    gflops = threads * _DEFAULT_THREAD_GFLOPS
    gb_s = min(threads * _DEFAULT_THREAD_GB_S, _DEFAULT_GB_S)
    return Peaks(threads, gflops, gflops * _int8_gain(isa), ((1 << 28, gb_s),), (), "assumed")


def _int8_gain(isa: Sequence[str]) -> float:
    """int8 operations per float32 operation of the widest instructions."""
    return 4.0 if any(name in isa for name in _INT8_DOT) else 2.0


def _sane(p: Peaks) -> bool:
    figures = [p.fp32_gflops, p.int8_gops, *(x for pair in p.read for x in pair)]
    return bool(p.read) and all(math.isfinite(x) and x > 0 for x in figures)


def _today() -> str:
    return datetime.date.today().isoformat()
