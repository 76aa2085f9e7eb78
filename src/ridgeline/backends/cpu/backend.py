"""The cpu backend: plans memory, and hands a program to the native loop, one call per step."""

from __future__ import annotations

import functools
import math
import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ridgeline.backends.base import ReadWeight
from ridgeline.backends.cpu import _native
from ridgeline.backends.cpu.panels import UNPACKED, Panels
from ridgeline.backends.cpu.record import MULTIPLIES, Extents, Record, encode
from ridgeline.cores import available_cores, physical_cores
from ridgeline.errors import ConfigError
from ridgeline.ops.attention import PAGE
from ridgeline.program.batch import WANT_HIDDEN, WANT_IDS, WANT_LOGITS, Batch, BatchLayout, StepResult
from ridgeline.program.ir import Entry, Instr, Program, View
from ridgeline.program.memory import MemoryPlan, plan_memory
from ridgeline.program.passes.rewrite import redirected
from ridgeline.quant.format import FORMATS

if TYPE_CHECKING:
    from ridgeline.weights.packed import PackedWeights

_SLACK = 64  # vector loads may run past the last value of the last page
PAGES_VERSION = 1  # raise it where kernels store other keys and values than before, or lay pages out anew
_LEVELS = ("portable", "avx2", "avx512", "avx512bf16")
_THREADS = 64  # allowed on any machine, where fewer cores make them slow but not wrong
_DTYPES = {"f32": np.float32, "i32": np.int32}


class CPU:
    """Backend of any CPU; x86-64 has kernels for AVX2, AVX-512 with VNNI, and that with BF16.

    `threads` 0 takes all available cores; with `pin` each keeps to one physical core. `isa` forces a level: "portable"
    (runs anywhere), "avx2", "avx512" or "avx512bf16"; "" takes the best. Raises ConfigError for a level this machine
    lacks and for more threads than it can use.
    """

    name = "cpu"
    held_as: Mapping[str, str] = {
        "f32": "f32", "f16": "f32", "q5_0": "q8_0", "iq4_nl": "q8_0", **dict.fromkeys(UNPACKED, "f32"),
        "q5_1": "uint8_g32", "q2_k": "k2", "q3_k": "k3", "q4_k": "k4", "q5_k": "k5", "q6_k": "k6", "iq4_xs": "k8",
        **{held: held for held in MULTIPLIES if held in FORMATS},
    }  # fmt: skip
    multiplies: Mapping[str, tuple[str, ...]] = MULTIPLIES
    unpacks_to = ""

    def __init__(self, threads: int, isa: str = "", pin: bool = False) -> None:
        self.isa = _level(isa)
        self.pool = _pool(threads or available_cores(), pin)

    def compile(
        self, program: Program, read: ReadWeight, layout: BatchLayout, pages: int, packed: PackedWeights | None = None
    ) -> CPUStep:
        """Raises Unsupported, naming the op, operand, attribute or format the native loop does not have."""
        entry, plan, record = encoded(program, layout, pages)
        kv = _reserved(kv_bytes(program, pages))
        weights, vectors = Panels(self.pool, self.held_as).load(record.weights, record.vectors, read, packed)
        arena = _native.Memory(max(plan.nbytes, 64))
        native = _native.Step(self.pool, self.isa, record.words, weights, vectors, kv, arena)
        return CPUStep(native, layout, entry, plan, arena, Pages(kv.array(), program, self.isa))

    def count_in(self, counter: NDArray[np.uint64]) -> None:
        """Count the barriers of steps in this memory, which another process may watch."""
        self.pool.count_in(counter)


def _reserved(nbytes: int) -> _native.Memory:
    """Address space for the KV pool: the system gives it memory as it is touched."""
    try:
        return _native.Memory(nbytes)
    except MemoryError:
        raise ConfigError(f"the system reserves no {nbytes >> 20} MiB for the KV pool; lower --kv-memory") from None


def encoded(program: Program, layout: BatchLayout, pages: int) -> tuple[Entry, MemoryPlan, Record]:
    """Both entries as one, where its buffers lie, and its record."""
    limits, entry = layout.limits, join(program)
    plan = plan_memory(entry, limits, linger=("linear", "attention"))
    capacity = {axis: limits.capacity(axis) for axis in "TRLCEHM"}
    held = (limits.held, limits.hidden)
    extents = Extents(layout.slots, layout.nbytes, capacity, layout.groups, pages, held)
    return entry, plan, encode(entry, plan, extents, entry.results[0].buffer, len(program.forward.instrs))


def _level(isa: str) -> str:
    if isa and isa not in _LEVELS:
        raise ConfigError(f"isa {isa!r} is not known; choose one of {', '.join(_LEVELS)}")
    try:
        return _native.isa(isa)
    except ValueError:
        raise ConfigError(f"this machine cannot run isa {isa!r}; its best is {_native.isa()!r}") from None


def _pool(threads: int, pin: bool) -> _native.Pool:
    most = max(_THREADS, os.cpu_count() or 1)
    if not 0 < threads <= most:
        raise ConfigError(f"threads is {threads}; this machine has {os.cpu_count()} cores: set 0 (all) to {most}")
    cores = physical_cores() if pin else ()
    if pin and threads > len(cores):
        raise ConfigError(f"{threads} threads cannot be pinned to the {len(cores)} physical cores there are; set fewer")
    try:
        return _native.Pool(threads, cores[:threads])
    except RuntimeError as wrong:
        pinned = f" pinned to cores {', '.join(map(str, cores[:threads]))}" if pin else ""
        advice = "set fewer" + (", or do not pin" if pin else "")
        raise ConfigError(f"the system does not start {threads} threads{pinned} ({wrong}); {advice}") from wrong


class Pages:
    """The KV pool as pages: [run of pages][layer][page of the run][bytes]."""

    def __init__(self, memory: NDArray[np.uint8], program: Program, isa: str) -> None:
        layers, layer_page = _page_shape(program)
        self.memory = memory
        shape = layers, _native.PAGE_RUN, layer_page
        runs = (len(memory) - _SLACK) // max(math.prod(shape), 1)
        self._runs = memory[: runs * math.prod(shape)].reshape(runs, *shape)
        self.nbytes = layers * layer_page
        # ISA levels round differently, so an answer would show whether its prefix came from another one.
        self.layout = f"cpu {isa} {PAGES_VERSION} {layers} x {layer_page} {sys.byteorder}"

    def read(self, page: int) -> bytes:
        run, at = divmod(page, _native.PAGE_RUN)
        return self._runs[run, :, at].tobytes()

    def write(self, page: int, data: bytes) -> None:
        run, at = divmod(page, _native.PAGE_RUN)
        layers = self._runs[run, :, at]
        layers[:] = np.frombuffer(data, np.uint8).reshape(layers.shape)


class CPUStep:
    """A compiled program: one native call per batch. Results are copied out of the arena.

    `native_s` is the time spent in native calls so far, in seconds.
    """

    def __init__(
        self, native: _native.Step, layout: BatchLayout, entry: Entry, plan: MemoryPlan, arena: _native.Memory,
        pages: Pages,
    ) -> None:  # fmt: skip
        self.layout, self._native, self._entry = layout, native, entry
        self._arena, self.kv, self.pages = arena.array(), pages.memory, pages
        self.native_s = 0.0
        self._want = layout.slots["want"].offset // 4
        capacity = layout.limits.capacity
        self._results = [
            result(self._arena, plan, view, capacity(str(view.buffer.type.shape[0]))) for view in entry.results
        ]
        _, self._hidden, *self._extra, ids, self._logprobs, self._top_ids, self._top_logprobs, self._logits = (
            self._results
        )
        self._ids = functools.cache(lambda rows: ids[:rows])

    def run(self, batch: Batch) -> StepResult:
        begin = time.perf_counter()
        self._native.run(batch.buffer)
        self.native_s += time.perf_counter() - begin
        step, rows, want = batch.size("step"), batch.size("L"), 0
        for i in range(self._want, self._want + rows):
            want |= batch.ints[i]
        ids = self._ids(rows).copy()
        if want == WANT_IDS and not self._extra:  # as a rule; each further array costs a way through cold code
            return StepResult(step, ids)
        return StepResult(
            step,
            ids,
            self._logprobs[:rows].copy(),
            self._top_ids[:rows].copy(),
            self._top_logprobs[:rows].copy(),
            self._hidden[:rows].copy() if want & WANT_HIDDEN else None,
            self._logits[:rows].copy() if want & WANT_LOGITS else None,
            tuple(x[: batch.size("T")].copy() for x in self._extra),
        )

    def profile(self, batch: Batch) -> list[tuple[Instr, float, float]]:
        """Run a batch; each instruction with the seconds thread 0 waited for the others before it, and worked on it."""
        times = self._native.profile(batch.buffer)
        return [(instr, *took) for instr, took in zip(self._entry.instrs, times, strict=False)]


def result(arena: NDArray[np.uint8], plan: MemoryPlan, view: View, rows: int) -> NDArray[Any]:
    """The first `rows` rows of a view, as they lie in the arena."""
    shape, offset = view.buffer.type.shape, plan.offsets[view.buffer.id]
    columns = view.buffer.type.columns if len(shape) > 1 else 1
    flat = arena[offset : offset + rows * columns * 4].view(_DTYPES[view.buffer.type.dtype])
    values = flat.reshape(rows, columns)[:, view.start : view.stop]
    return values if len(shape) > 1 else values[:, 0]


def join(program: Program) -> Entry:
    """Both entries as one: `sample` reads the hidden rows where `forward` left them.

    Results are forward's (kept, hidden), then sample's.
    """
    hidden = program.forward.results[1]
    moved = {program.sample.params[0].id: hidden}
    sample = tuple(redirected(i, moved) for i in program.sample.instrs)
    return Entry((), program.forward.instrs + sample, program.forward.results + program.sample.results)


def kv_bytes(program: Program, pages: int) -> int:
    """Bytes of the pool that all state groups share: [run of pages][layer][page]."""
    layers, layer_page = _page_shape(program)
    return whole_runs(pages) * layers * layer_page + _SLACK


def _page_shape(program: Program) -> tuple[int, int]:
    """Layers of a page, and the bytes of each."""
    layers = max((s.layers for s in program.states), default=0)
    return layers, max((int(s.layer_token_bytes * PAGE) for s in program.states), default=0)


def whole_runs(pages: int) -> int:
    """Pages that the pool holds for so many: it consists of whole runs."""
    return -(-pages // _native.PAGE_RUN) * _native.PAGE_RUN
