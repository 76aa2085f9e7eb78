"""The boundary: records and arguments that do not fit are refused; the pool serves any number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from damage import Rig, batch
from rig import batch_of, cpu_step, logits, program, prompt

from ridgeline.backends.cpu import _native
from ridgeline.backends.cpu.backend import CPU
from ridgeline.cores import available_cores
from ridgeline.errors import ConfigError


def test_records_cut_short_are_refused() -> None:
    rig = Rig("f32", "f32", False)
    for length in range(0, len(rig.words), 7):
        with pytest.raises(ValueError, match="program record"):
            rig.run(rig.words[:length].copy(), batch(rig.layout))


def test_damaged_records_do_no_harm() -> None:
    """Whatever word is damaged, the record is refused or runs; tried in a process of its own, which must survive."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    script = Path(__file__).with_name("damage.py")
    done = subprocess.run([sys.executable, script], check=False, env=env, capture_output=True, text=True, timeout=250)
    tail = "".join(done.stdout.splitlines(True)[-1:]) + done.stderr[-2000:]
    assert done.returncode == 0, tail
    accepted, refused = (int(part.split()[0]) for part in tail.split(", "))
    assert refused > accepted > 0, tail


@pytest.mark.parametrize(
    ("field", "at", "change"),
    [
        ("kv_len", 1, -1),  # rows
        ("sampler", 3, -76),  # item size
        ("ids", 3, 4),
        ("bias_values", 1, -1),
        ("history_output", 1, -1),
        ("masks", 1, -1),
        ("masks", 2, -1),  # words of a row
        ("copies", 2, -1),
        ("copies", 1, -1),
        ("want", 1, -1),
        ("hold_slot", 1, -1),
        ("out_rows", 0, 4),  # alignment
    ],
)
def test_fields_too_small_are_refused(field: str, at: int, change: int) -> None:
    rig = Rig("f32", "f32", False)
    given, slot = batch(rig.layout), rig.layout.slots[field]
    inner = int(np.prod(slot.shape[1:]))
    entry = [slot.offset, slot.shape[0], inner, slot.dtype.itemsize]
    damaged = rig.words.copy()
    found = [i for i in range(len(damaged) - 4) if damaged[i : i + 4].tolist() == entry]
    assert len(found) == 1
    damaged[found[0] + at] += change
    with pytest.raises(ValueError, match="program record"):
        rig.run(damaged, given)


@pytest.mark.parametrize(("from_end", "value"), [(4, "logits"), (3, -1), (2, -1), (1, 0)])
def test_held_rows_and_copies_need_fitting_places(from_end: int, value: int | str) -> None:
    """The kept buffer must be as wide as held rows; hold_slot and want are needed; copies are four words each."""
    rig = Rig("f32", "f32", False)
    damaged = rig.words.copy()
    damaged[-from_end] = damaged[16] - 5 if value == "logits" else value  # logits come before sample's four outputs
    with pytest.raises(ValueError, match="kept rows|other fields|another field"):
        rig.run(damaged, batch(rig.layout))


def test_more_heads_than_columns_are_refused() -> None:
    """A head count whose product with the head size wraps round to the right width."""
    rig = Rig("f32", "f32", False)
    for at in np.flatnonzero((rig.words[:-1] == 12) & np.isin(rig.words[1:], (0, 70))):  # n_heads, window
        damaged = rig.words.copy()
        damaged[at] += 2**61
        with pytest.raises(ValueError, match="program record"):
            rig.run(damaged, batch(rig.layout))


def test_threads_and_isa_that_cannot_be_met() -> None:
    with pytest.raises(ConfigError, match=f"100000.*{os.cpu_count()} cores"):
        CPU(100_000)
    with pytest.raises(ConfigError, match="threads is -1"):
        CPU(-1)
    with pytest.raises(ConfigError, match="'vax' is not known; choose one of portable, avx2, avx512"):
        CPU(1, "vax")
    assert CPU(0).pool.threads == available_cores()
    with pytest.raises(ValueError, match="at least one"):
        _native.Pool(0)


def test_an_isa_this_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(isa: str = "") -> str:
        if isa == "avx512":
            raise ValueError
        return isa or "avx2"

    monkeypatch.setattr(_native, "isa", lacks)
    with pytest.raises(ConfigError, match="cannot run isa 'avx512'; its best is 'avx2'"):
        CPU(1, "avx512")


def test_threads_that_do_not_start_end_no_process() -> None:
    """Address space for a few stacks only; the pool joins what it started and says why."""
    script = """
import resource
from ridgeline.backends.cpu.backend import CPU, ConfigError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20), -1))
try:
    CPU(64)
except ConfigError as wrong:
    print(wrong)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "does not start 64 threads" in done.stdout, done


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
    given = batch_of(step.layout, [(0, prompt(9), 0)])

    def work(name: int) -> None:
        for _ in range(20):
            step._native.run(given.buffer)
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
