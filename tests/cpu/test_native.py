"""The boundary: records and arguments that do not fit are refused; the pool serves any number of threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from rig import batch_of, cpu_step, logits, program, prompt

from ridgeline.backends.cpu import _native
from ridgeline.backends.cpu.backend import join
from ridgeline.backends.cpu.record import Extents, encode
from ridgeline.program.batch import BatchLayout, Limits
from ridgeline.program.memory import plan_memory

LIMITS = Limits(tokens=8, requests=2, rows=4, pages=2, vocab=131, hidden=96)


def words() -> np.ndarray:
    p = program()
    layout = BatchLayout.of(LIMITS, p.states)
    entry = join(p)
    capacity = {axis: LIMITS.capacity(axis) for axis in "TRLCEHM"}
    extents = Extents(layout.slots, layout.nbytes, capacity, layout.groups, pages=4)
    return encode(entry, plan_memory(entry, LIMITS), extents, entry.results[0].buffer).words


def decode(record: np.ndarray) -> None:
    pool, memory = _native.Pool(1), _native.Memory(1 << 20)
    _native.Step(pool, "portable", record, [], [], memory, memory)


def test_damaged_records_are_refused() -> None:
    """Whatever word is damaged, decoding ends in ValueError: no parameters are given, so nothing may pass."""
    record = words()
    rng = np.random.default_rng(0)
    for length in (0, 1, 3, 20, len(record) - 1):
        with pytest.raises(ValueError):
            decode(record[:length].copy())
    for at in rng.integers(0, len(record), 300):
        damaged = record.copy()
        damaged[at] = rng.choice([-1, 0, 1, 2**31, 2**62, -(2**63), int(damaged[at]) + 1])
        with pytest.raises(ValueError):
            decode(damaged)


def test_unknown_isa_and_small_memory() -> None:
    with pytest.raises(ValueError, match="vax"):
        _native.isa("vax")
    step = cpu_step(program())
    with pytest.raises(ValueError, match="size"):
        step._native.run(np.zeros(64, np.uint8))
    other = batch_of(step.layout, [(0, [1], 0)])
    other.buffer[8] = 9
    with pytest.raises(ValueError, match="version"):
        step._native.run(other.buffer)


def test_more_threads_than_cores_or_work() -> None:
    ids, p = prompt(70), program("q4_1", "bf16", int8=True)
    whole = logits(cpu_step(p, "q4_1", 1), ids, ())
    step = cpu_step(p, "q4_1", 13)
    for cuts in ((), (69,), (3, 60)):
        assert np.array_equal(logits(step, ids, cuts), whole)


def test_steps_of_one_backend_may_run_from_several_threads() -> None:
    step, found = cpu_step(program(), threads=2), {}
    batch = batch_of(step.layout, [(0, prompt(9), 0)])

    def work(name: int) -> None:
        for _ in range(20):
            step._native.run(batch.buffer)
        found[name] = True

    callers = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for c in callers:
        c.start()
    for c in callers:
        c.join()
    assert len(found) == 3


def test_a_step_without_tokens() -> None:
    """Only rows held from an earlier step are sampled."""
    step = cpu_step(program(), threads=2)
    first = batch_of(step.layout, [(0, prompt(5), 0)])
    first["want"][2], first["hold_slot"][2] = 16, 1
    kept = step.run(first)
    late = batch_of(step.layout, [])
    late.resize(L=1)
    late["out_rows"][0], late["want"][0] = -1 - 1, 8
    late["sampler"]["target"], late["sampler"]["mask_row"] = -1, -1
    assert step.run(late).ids[0] == kept.ids[2]
