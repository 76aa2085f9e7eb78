"""The batch: where each field lies, what a fresh one holds, that bytes are all there is, and that capacities hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.ops.sample import SAMPLER
from ridgeline.program.batch import (
    FIELD_TYPES,
    FIELDS,
    HEADER,
    MAGIC,
    PER_GROUP,
    VERSION,
    Batch,
    BatchLayout,
    Limits,
)
from ridgeline.program.ir import State

LIMITS = Limits(
    tokens=7, requests=3, rows=5, pages=4, vocab=131, hidden=96, masks=2, depth=3, input_rows=2, position_axes=3
)
LAYOUT = BatchLayout(LIMITS, ("kv", "kv24"))

limits = st.builds(
    Limits,
    tokens=st.integers(1, 300),
    requests=st.integers(1, 40),
    rows=st.integers(1, 64),
    pages=st.integers(1, 20),
    vocab=st.integers(1, 5000),
    hidden=st.integers(1, 200),
    copies=st.integers(0, 9),
    bias=st.integers(0, 9),
    history=st.integers(0, 9),
    masks=st.integers(0, 3),
    depth=st.integers(0, 3),
    input_rows=st.integers(0, 3),
    position_axes=st.integers(1, 3),
)


@settings(max_examples=100, deadline=None)
@given(limits, st.lists(st.sampled_from(["a", "b", "c"]), unique=True, max_size=3))
def test_fields_are_aligned_and_apart(lim, groups):
    layout = BatchLayout(lim, tuple(groups))
    end = 8 * 16
    for name, slot in layout.slots.items():
        assert slot.offset % 64 == 0 and slot.offset >= end, name
        assert slot.shape == tuple(lim.capacity(a) for a in slot.axes)
        end = slot.offset + int(np.prod(slot.shape)) * slot.dtype.itemsize
    assert layout.nbytes >= end and layout.nbytes % 64 == 0


def test_layout_has_every_field_and_the_grouped_ones_per_group():
    expected = {f for f in FIELDS if f not in PER_GROUP} | {f"{f}.{g}" for f in PER_GROUP for g in LAYOUT.groups}
    assert set(LAYOUT.slots) == expected
    states = [State("kv", 2, 1, 8), State("kv24", 2, 1, 8, window=24)]
    assert BatchLayout.of(LIMITS, states) == LAYOUT
    assert BatchLayout.of(LIMITS, states).slots == LAYOUT.slots


def test_field_types_are_those_of_the_buffer():
    dtypes = {"i32": np.int32, "i64": np.int64, "f32": np.float32, "u32": np.uint32, "sampler": SAMPLER}
    for name, (axes, _) in FIELDS.items():
        kind = FIELD_TYPES[name]
        assert len(kind.shape) == len(axes) and [s for s in kind.shape if s in ("T", "R", "L")] == [
            a for a in axes if a in "TRL"
        ]
        label = f"{name}.kv" if name in PER_GROUP else name
        assert np.dtype(dtypes[kind.dtype]) == LAYOUT.slots[label].dtype


DEFAULTS = {
    "source_step": -1, "source_row": -1, "adapter": -1, "path": -1, "input_row": -1,
    "page_table.kv": -1, "page_table.kv24": -1,
}  # fmt: skip


@pytest.mark.parametrize("name", [n for n in LAYOUT.slots if n != "sampler"])
def test_a_fresh_batch_holds_defaults(name):
    assert (Batch(LAYOUT).full(name) == DEFAULTS.get(name, 0)).all()


def test_a_fresh_header():
    b = Batch(LAYOUT)
    assert b.header[:4].tolist() == [MAGIC, VERSION, LAYOUT.nbytes, 0]
    assert [b.size(a) for a in "TRLCEHM"] == [0] * 7
    assert b["ids"].shape == (0,) and b["positions"].shape == (3, 0) and b["page_table.kv"].shape == (0, 4)
    assert not b.full("sampler").view(np.uint8).any()


def test_fields_in_use_are_views():
    b = Batch(LAYOUT)
    b.resize(step=9, T=4, R=2, L=3, C=1, M=1)
    assert b["ids"].shape == (4,) and b["positions"].shape == (3, 4) and b["path"].shape == (4, 3)
    assert b["page_table.kv24"].shape == (2, 4) and b["sampler"].shape == (3,) and b["copies"].shape == (1, 4)
    assert b["masks"].shape == (1, 5) and b["input_rows"].shape == (2, 96)
    b["ids"][:] = [1, 2, 3, 4]
    assert b.full("ids").tolist() == [1, 2, 3, 4, 0, 0, 0] and b.size("step") == 9
    assert set(b.fields()) == set(LAYOUT.slots)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 7), st.integers(0, 3), st.integers(0, 5), st.randoms(use_true_random=False))
def test_bytes_are_all_there_is(t, r, rows, random):
    b = Batch(LAYOUT)
    b.resize(step=random.randrange(1 << 40), T=t, R=r, L=rows, E=2, H=3)
    rng = np.random.default_rng(random.randrange(1 << 30))
    for name in LAYOUT.slots:
        used = b[name]
        used[...] = rng.integers(0, 256, used.nbytes, np.uint8).view(used.dtype).reshape(used.shape)
    copy = Batch(BatchLayout(LIMITS, LAYOUT.groups), np.frombuffer(b.buffer.tobytes(), np.uint8))
    assert (copy.header == b.header).all()
    for name, x in b.fields().items():
        assert copy[name].tobytes() == x.tobytes() and copy[name].shape == x.shape


def test_a_batch_over_its_capacity_is_refused():
    b = Batch(LAYOUT)
    for axis, size in {"T": 7, "R": 3, "L": 5, "C": 64, "M": 2}.items():
        b.resize(**{axis: size})
        with pytest.raises(AssertionError, match=f"{axis}={size + 1} is over"):
            b.resize(**{axis: size + 1})
    b.resize(step=1 << 40)


def test_a_new_step_has_no_lists():
    b = Batch(LAYOUT)
    b.resize(C=3, E=4, H=5, M=1)
    b.begin(1 << 40, 7, 3, 5)
    assert b.header[3:].tolist() == [1 << 40, 7, 3, 5] + [0] * 9
    for over in ((8, 3, 5), (7, 4, 5), (7, 3, 6)):
        with pytest.raises(AssertionError, match="over capacity"):
            b.begin(2, *over)


def test_numbers_through_memoryviews_are_the_fields():
    b = Batch(LAYOUT)
    at = {name: slot.offset for name, slot in LAYOUT.slots.items()}
    b.ints[at["ids"] // 4 + 2], b.longs[at["source_step"] // 8 + 3] = 11, 1 << 40
    assert b.full("ids")[2] == 11 and b.full("source_step")[3] == 1 << 40


@pytest.mark.parametrize("field", [0, 1, 2])
def test_bytes_of_another_layout_or_version_are_refused(field):
    b = Batch(LAYOUT)
    b.header[field] += 1
    with pytest.raises(AssertionError, match="another layout or version"):
        Batch(LAYOUT, b.buffer)


def test_the_header_names_its_numbers():
    b = Batch(LAYOUT)
    b.resize(T=1, R=2, L=3)
    assert dict(zip(HEADER, b.header.tolist(), strict=False))["R"] == 2
    assert len(HEADER) <= 16 and b.header.dtype == np.int64
