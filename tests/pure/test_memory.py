"""The memory plan: no two buffers that are alive together overlap, and nothing is larger than it must be."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from ridgeline import models
from ridgeline.models.hf import from_hf
from ridgeline.ops.spec import TensorType
from ridgeline.program.batch import Limits
from ridgeline.program.ir import Buffer, Entry, Instr, View
from ridgeline.program.memory import ALIGN, buffer_bytes, live_ranges, plan_memory
from ridgeline.program.passes import pipeline

LIMITS = Limits(tokens=7, requests=2, rows=3, pages=4, vocab=131, hidden=96)


def whole(buffer):
    return View(buffer, 0, buffer.type.columns)


@st.composite
def entries(draw):
    """Random straight-line code: each instruction reads up to three earlier buffers, parameters included."""
    types = st.builds(
        TensorType,
        st.tuples(st.sampled_from(["T", "L", "R", 5]), st.integers(1, 200)),
        st.sampled_from(["f32", "i32", "i8g32"]),
    )
    known = [Buffer(i, draw(types)) for i in range(draw(st.integers(0, 2)))]
    params, instrs = tuple(known), []
    for _ in range(draw(st.integers(1, 25))):
        reads = draw(st.lists(st.sampled_from(known), max_size=3)) if known else []
        outs = tuple(Buffer(len(known) + i, draw(types)) for i in range(draw(st.integers(1, 3))))
        instrs.append(Instr("add", {f"x{i}": whole(b) for i, b in enumerate(reads)}, outs))
        known += outs
    results = tuple(whole(b) for b in draw(st.lists(st.sampled_from(known), min_size=1, max_size=3)))
    return Entry(params, tuple(instrs), results)


def check(entry, limits):
    plan, ranges = plan_memory(entry, limits), live_ranges(entry)
    buffers = {b.id: b for b in (*entry.params, *(b for i in entry.instrs for b in i.outputs))}
    assert set(plan.offsets) == set(buffers) == set(ranges)
    places = [(plan.offsets[i], plan.offsets[i] + buffer_bytes(b, limits), *ranges[i]) for i, b in buffers.items()]
    for n, (start, stop, first, last) in enumerate(places):
        assert start % ALIGN == 0 and 0 <= start < stop <= plan.nbytes
        for other_start, other_stop, other_first, other_last in places[:n]:
            together = first <= other_last and other_first <= last
            assert not together or stop <= other_start or other_stop <= start
    return plan, places


@settings(max_examples=200, deadline=None)
@given(entries())
def test_live_buffers_never_overlap(entry):
    plan, places = check(entry, LIMITS)
    assert plan.nbytes <= sum(stop - start for start, stop, *_ in places)


@settings(max_examples=100, deadline=None)
@given(entries())
def test_a_buffer_lives_from_its_writer_to_its_last_reader(entry):
    ranges, end = live_ranges(entry), len(entry.instrs)
    for i, instr in enumerate(entry.instrs):
        for out in instr.outputs:
            assert ranges[out.id][0] == i
        for x in instr.operands.values():
            assert ranges[x.buffer.id][0] < i <= ranges[x.buffer.id][1]
    for p in entry.params:
        assert ranges[p.id] == (-1, end)
    for r in entry.results:
        assert ranges[r.buffer.id][1] == end


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_real_programs(name, fused):
    listed = pipeline.passes(lambda w: "f32", "bf16", fused=fused, multiplies={"f32": ("i8g32",)})
    program = pipeline.run(models.build(from_hf(tiny.CONFIGS[name])), listed)
    for entry in program.entries.values():
        check(entry, LIMITS)


def test_layers_share_one_arena():
    """Depth costs nothing: twenty layers need what two need."""
    sizes = []
    for layers in (2, 20):
        program = models.build(from_hf(tiny.changed(tiny.CONFIGS["llama"], num_hidden_layers=layers)))
        sizes.append(plan_memory(program.forward, LIMITS).nbytes)
    assert sizes[0] == sizes[1]


def test_a_gap_is_filled():
    """The third buffer takes the place of the first, which is dead by then."""
    t = TensorType(("T", 64))
    a, b, c = (Buffer(i, t) for i in range(3))
    entry = Entry(
        (), (Instr("x", {}, (a,)), Instr("x", {"x": whole(a)}, (b,)), Instr("x", {"x": whole(b)}, (c,))), (whole(c),)
    )
    plan = plan_memory(entry, LIMITS)
    size = buffer_bytes(a, LIMITS)
    assert plan.offsets == {0: 0, 1: size, 2: 0} and plan.nbytes == 2 * size


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        (("T", 64), "f32", 7 * 64 * 4),
        (("L",), "i32", 64),
        (("T", 80), "i8g32", -(-7 * (96 + 3 * 8) // 64) * 64),
        ((5, 3), "f32", 64),
    ],
)
def test_buffer_bytes(shape, dtype, expected):
    assert buffer_bytes(Buffer(0, TensorType(shape, dtype)), LIMITS) == expected


def test_an_empty_entry_needs_nothing():
    assert plan_memory(Entry((), (), ()), LIMITS).nbytes == 0
