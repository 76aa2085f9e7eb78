"""What the native side measures of the machine, and of its own steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from harness import ISAS
from rig import batch_of, cpu_step, program, prompt

from ridgeline.backends.cpu import _native


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_peaks(isa: str, threads: int) -> None:
    pool = _native.Pool(threads)
    int8, bf16, f32 = (_native.peak_gops(pool, isa, kind) for kind in ("int8", "bf16", "f32"))
    assert int8 > 0 and f32 > 0 and math.isfinite(int8 + f32)
    assert bf16 == 0 or (isa.startswith("avx512") and math.isfinite(bf16))
    with pytest.raises(ValueError, match="fp8"):
        _native.peak_gops(pool, isa, "fp8")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_read(isa: str, threads: int) -> None:
    pool, memory = _native.Pool(threads), _native.Memory(1 << 20)
    _native.touch(pool, memory)
    assert np.all(memory.array() == 1)
    assert 0 < _native.read_gb_s(pool, isa, memory, 1 << 20, 2) < 1e5
    assert _native.read_gb_s(pool, isa, memory, 1 << 17, 2) > 0
    for nbytes, rounds in ((-1, 1), ((1 << 20) + 1, 1), (1 << 10, 0)):
        with pytest.raises(ValueError, match="bytes"):
            _native.read_gb_s(pool, isa, memory, nbytes, rounds)


@pytest.mark.parametrize("threads", [1, 2])
def test_barrier(threads: int) -> None:
    assert 0 < _native.barrier_ns(_native.Pool(threads)) < 1e9


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_profile_names_every_instruction_and_computes_the_same(threads: int) -> None:
    step = cpu_step(program("q4_1", "bf16", int8=True), "q4_1", threads)
    batch = batch_of(step.layout, [(0, prompt(9), 0)])
    expected = step.run(batch).logits
    done = step.native_s
    assert done > 0
    times = step.profile(batch)
    assert [i.op for i, _, _ in times][:2] == ["embedding", "rotary"] and times[-1][0].op == "sample"
    assert all(wait >= 0 and work >= 0 for _, wait, work in times) and sum(work for _, _, work in times) > 0
    assert np.array_equal(step.run(batch).logits, expected) and step.native_s > done
    with pytest.raises(ValueError, match="size"):
        step._native.profile(np.zeros(64, np.uint8))
