"""Types of quantised rows: their meaning one value at a time, their sizes, and which types a program's linears read."""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from ridgeline import models
from ridgeline.backends.base import MULTIPLIES
from ridgeline.models.hf import from_hf
from ridgeline.ops.linear import linear, quantize_act
from ridgeline.ops.spec import INT8_GROUPS, Load, TensorType, groups_of, nbytes, row_bytes
from ridgeline.program.passes import pipeline

GROUP = {"i8g32": 32, "i8g64": 64, "i8g128": 128}


@pytest.mark.parametrize("k", [1, 32, 33, 80, 576, 640])
@pytest.mark.parametrize("dtype", [*GROUP, "i8"])
def test_each_group_has_its_own_scale(dtype, k):
    x = np.random.default_rng(k).standard_normal((3, k)).astype(np.float32)
    x[1] *= 1e-3
    x[2, : k // 2] = 0
    rows = quantize_act(x, dtype=dtype)
    group = GROUP.get(dtype, -(-k // 32) * 32)
    assert rows.group == group and rows.q.shape == (3, -(-k // group) * group) and rows.dtype == dtype
    assert rows.shape == (3, k) and not rows.q[:, k:].any()
    for t in range(3):
        for g in range(rows.scale.shape[1]):
            part = x[t, g * group : (g + 1) * group]
            scale = np.abs(part).max(initial=0) / np.float32(127)
            assert rows.scale[t, g] == scale
            q = rows.q[t, g * group : g * group + len(part)]
            assert np.abs(q * scale - part).max() <= 0.5001 * scale
            assert np.array_equal(rows.float32()[t, g * group : g * group + len(part)], q * scale)


def test_two_terms_leave_a_hundredth_of_the_error():
    x = np.random.default_rng(0).standard_normal((5, 80)).astype(np.float32)
    x[2] = 0
    one, two = quantize_act(x), quantize_act(x, dtype="i8g32x2")
    assert two.q.shape == (5, 192) and two.scale.shape == (5, 6) and two.group == 32 and two.shape == (5, 80)
    assert np.array_equal(two.q[:, :96], one.q) and np.array_equal(two.scale[:, :3], one.scale)
    assert np.array_equal(two.scale[:, 3:] * 128, one.scale) and np.abs(two.q[:, 96:]).max() <= 64
    rest = two.q[:, 96:].reshape(5, 3, 32) * two.scale[:, 3:, None]
    assert np.array_equal(two.float32(), one.float32() + rest.reshape(5, 96)[:, :80])
    assert np.abs(two.float32() - x).max() < np.abs(one.float32() - x).max() / 100 and not two.float32()[2].any()


def test_bf16_rows_are_rounded_values():
    x = np.array([[1.0, 1 + 2**-9, 1 + 3 * 2**-9, 3e38, -0.0]], np.float32)
    got = quantize_act(x, dtype="bf16")
    assert got.dtype == np.float32 and not (got.view(np.uint32) & 0xFFFF).any()
    assert got[0, :3].tolist() == [1.0, 1.0, 1 + 2**-7]


@pytest.mark.parametrize("dtype", [*INT8_GROUPS, "bf16"])
def test_linear_takes_every_type(dtype):
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((5, 200), dtype=np.float32), rng.standard_normal((7, 200), dtype=np.float32)
    got, exact = linear(quantize_act(x, dtype=dtype), w), linear(x, w)
    assert 0 < np.abs(got - exact).max() < 0.03 * np.abs(exact).max()


def test_row_bytes():
    expected = {
        ("i8g32", 80): 96 + 3 * 8, ("i8g64", 80): 128 + 2 * 8, ("i8g128", 80): 128 + 8, ("i8", 80): 96 + 8,
        ("i8g64", 576): 576 + 9 * 8, ("i8g128", 576): 640 + 5 * 8, ("i8", 576): 576 + 8,
        ("i8g32x2", 80): 2 * (96 + 3 * 8), ("bf16", 80): 160 + 64, ("bf16", 33): 68 + 64, ("f32", 33): 132,
    }  # fmt: skip
    for (dtype, columns), size in expected.items():
        t = TensorType(("T", columns), dtype)
        moved = size - (64 if dtype == "bf16" else 0)  # the gap behind a row is not touched
        assert row_bytes(t) == size and nbytes(t, Load(((0, 7),), 1)) == 7 * moved
    assert groups_of("i8", 80) == (1, 96) and groups_of("i8g64", 576) == (9, 64)


def read_types(fmt, choice, multiplies=MULTIPLIES, config="llama", fused=True):
    """Types of rows that the linears of a tiny model in one format read: by the last name of each matrix."""
    listed = pipeline.passes(
        lambda w: "f32" if len(w.shape) == 1 else fmt, "bf16", multiplies=multiplies, activations=choice, fused=fused
    )
    found = {}
    for i in pipeline.run(models.build(from_hf(tiny.CONFIGS[config])), listed).instrs:
        for part in i.operands["w"].parts if i.op == "linear" else ():
            found.setdefault(part.split(".")[-2], set()).add(i.operands["x"].type.dtype)
    return found


PLAIN = ("o", "gate", "up", "down")


@pytest.mark.parametrize(
    ("fmt", "auto", "int8", "int8_row", "bf16"),
    [
        ("q4_1", "i8g32", "i8g32", "i8g32", "f32"),
        ("q8_0", "i8g32", "i8g32", "i8g32", "f32"),
        ("int8", "i8g32", "i8g32", "i8", "f32"),
        ("int4_g64", "i8g64", "i8g64", "i8g64", "f32"),
        ("uint4_g128", "i8g128", "i8g128", "i8g128", "f32"),
        ("bf16", "bf16", "f32", "f32", "bf16"),
        ("f16", "f32", "f32", "f32", "f32"),
        ("f32", "f32", "f32", "f32", "f32"),
    ],
)
def test_choices(fmt, auto, int8, int8_row, bf16):
    expected = {"auto": auto, "int8": int8, "int8-row": int8_row, "bf16": bf16, "float32": "f32"}
    for choice, dtype in expected.items():
        found = read_types(fmt, choice)
        names = PLAIN if choice == "auto" else found  # "auto" may give q, k, v and the head two terms
        assert {name: found[name] for name in names} == {name: {dtype} for name in names}
    assert set().union(*read_types(fmt, "auto", {}).values()) == {"f32"}


@pytest.mark.parametrize(
    ("fmt", "choice", "able", "expected"),
    [
        ("q4_1", "auto", MULTIPLIES, "i8g32x2"),
        ("q4_1", "int8", MULTIPLIES, "i8g32"),
        ("q4_1", "auto", {"q4_1": ("i8g32",)}, "i8g32"),
        ("int8", "auto", MULTIPLIES, "i8g32x2"),
        ("q4_1", "float32", MULTIPLIES, "f32"),
        ("int4_g64", "auto", MULTIPLIES, "i8g64"),
    ],
)
def test_the_head_and_attention_read_two_terms_where_there_is_a_kernel(fmt, choice, able, expected):
    for config, fused in (("llama", True), ("llama", False), ("falcon7", True), ("gemma3", True)):
        found = read_types(fmt, choice, able, config, fused)
        read = set().union(*(found.get(name, set()) for name in ("q", "k", "v", "head", "embed")))
        assert read == {expected}, config
        assert found.get("head", found.get("embed")) == {expected}, config
        assert found["o"] == found["down"] == {expected.removesuffix("x2")}
