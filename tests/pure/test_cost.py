"""The cost fold against numbers counted by hand for SmolLM2-135M: parameters, bytes, FLOPs, KV."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from ridgeline import models
from ridgeline.models.config import ModelConfig, Rope
from ridgeline.ops.spec import Load
from ridgeline.program import cost
from ridgeline.program.passes import pipeline

V, H, LAYERS, HEADS, KV, D, F = 49152, 576, 30, 9, 3, 64, 1536
SMOLLM2 = ModelConfig("llama", V, H, LAYERS, HEADS, KV, D, F, 1e-5, Rope(1e5, D), 8192, tied=True)
MATRICES = V * H + LAYERS * (H * H + 2 * KV * D * H + H * H + 3 * F * H)  # embed (tied), q, k and v, o, mlp
VECTORS = LAYERS * 2 * H + H
CONSTANT = 4 * (D // 2)  # rotary frequencies


def program(weight_format="q4_1", kv_format="bf16", fused=True, int8=MappingProxyType({})):
    listed = pipeline.passes(
        lambda w: "f32" if len(w.shape) == 1 else weight_format, kv_format, fused=fused, multiplies=int8
    )
    return pipeline.run(models.build(SMOLLM2), listed)


@pytest.mark.parametrize("fused", [False, True])
def test_parameters(fused):
    assert MATRICES + VECTORS == 134_515_008
    assert cost.parameters(program(fused=fused)) == 134_515_008


@pytest.mark.parametrize(
    ("format", "bits"), [("f32", 32), ("f16", 16), ("bf16", 16), ("q8_0", 8.5), ("q4_0", 4.5), ("q4_1", 5)]
)
def test_weight_bytes(format, bits):
    assert cost.weight_bytes(program(format)) == MATRICES * bits / 8 + 4 * VECTORS + CONSTANT


@pytest.mark.parametrize(("format", "bytes_"), [("bf16", 2), ("f32", 4), ("int8", 1)])
def test_kv_bytes_per_token(format, bytes_):
    got = cost.kv_token_bytes(program(kv_format=format))
    scales = 2 * LAYERS * 2 * KV if format == "int8" else 0  # a bfloat16 per key and head, and per value
    assert got == LAYERS * 2 * KV * D * bytes_ + scales == {"bf16": 23_040, "f32": 46_080, "int8": 11_880}[format]
    [state] = program(kv_format=format).states
    assert state.page_bytes == 64 * got


def hand_flops(tokens, rows):
    """FLOPs of a prefill from nothing: two per multiply-add, causal attention without the upper triangle."""
    linears = 2 * tokens * LAYERS * (H * H + 2 * KV * D * H + H * H + 3 * F * H) + 2 * rows * V * H
    attention = LAYERS * 4 * HEADS * D * tokens * (tokens + 1) // 2  # q . k and p . v
    return linears, attention


def by_op(program, load):
    found = {}
    for c in cost.costs(program.instrs, load):
        found[c.instr.op] = found.get(c.instr.op, 0.0) + c.cost.flops
    return found


@pytest.mark.parametrize("fused", [False, True])
def test_flops_of_a_512_token_prefill(fused):
    linears, attention = hand_flops(512, 1)
    assert linears == 108_716_359_680 + 56_623_104 and attention == 9_077_391_360
    found = by_op(program(fused=fused), Load(((0, 512),), 1))
    assert found["linear"] == linears and found["attention"] == attention
    small = {op: flops for op, flops in found.items() if op not in ("linear", "attention")}
    rest = (
        20 * 512 * D  # rotary
        + LAYERS * 3 * 512 * (HEADS + KV) * D  # rope
        + LAYERS * 6 * 512 * F  # silu_mul
        + LAYERS * 2 * 512 * H  # the two residual adds
        + (LAYERS * 2 * 512 + 1) * 4 * H  # norms; the last one over the row that is kept
        + 4 * V  # sample
    )
    assert sum(small.values()) == rest
    assert rest < 0.01 * linears


def test_flops_do_not_depend_on_the_chunks():
    p = program()
    whole = cost.total(p, Load(((0, 512),), 1)).flops
    chunks = [cost.total(p, Load(((start, 128),), 1 if start == 384 else 0)).flops for start in range(0, 512, 128)]
    assert sum(chunks) == whole


def test_bytes_of_one_decoded_token():
    """All weights once, the embedding one row only; the cache read up to here and one entry written."""
    got = cost.total(program("q4_1"), Load(((1000, 1),), 1))
    assert got.weight_bytes == MATRICES * 5 / 8 + 4 * VECTORS + CONSTANT + H * 5 / 8
    assert got.kv_bytes == 23_040 * (1001 + 1)
    assert got.bytes == got.weight_bytes + got.kv_bytes + got.act_bytes
    assert got.act_bytes < 0.05 * got.weight_bytes


def test_a_batch_shares_the_weights():
    p = program()
    one, eight = (cost.total(p, Load(((100, 1),) * n, n)) for n in (1, 8))
    assert eight.flops == 8 * one.flops and eight.kv_bytes == 8 * one.kv_bytes
    assert eight.weight_bytes == one.weight_bytes + 7 * H * 5 / 8


def test_no_rows_no_sampling():
    p = program()
    found = cost.total(p, Load(((0, 64),), 0))
    assert found.flops == cost.total(p, Load(((0, 64),), 1)).flops - by_op(p, Load(((0, 64),), 1))["sample"] - (
        2 * V * H + 4 * H
    )


def test_int8_rows_are_counted():
    plain, quantised = (cost.total(program(int8=f), Load(((0, 64),), 1)) for f in ({}, {"q4_1": ("i8g32",)}))
    assert quantised.weight_bytes == plain.weight_bytes
    extra = 64 * LAYERS * (H + H + H + F) + H
    assert quantised.flops == plain.flops + 4 * extra
    # written and read back as int8 instead of read as float32
    assert quantised.act_bytes == plain.act_bytes + 2 * 1.25 * extra


def test_costs_are_listed_in_order():
    p = program()
    listed = cost.costs(p.instrs, Load(((0, 4),), 1))
    assert [c.instr for c in listed] == list(p.instrs)
    assert sum(c.cost.flops for c in listed) == cost.total(p, Load(((0, 4),), 1)).flops


def test_an_unbound_format_is_our_bug():
    with pytest.raises(AssertionError, match=r"embed\.weight.*not bound"):
        cost.weight_bytes(models.build(SMOLLM2))


@pytest.mark.parametrize("window", [0, 1, 5, 64, 1000])
@pytest.mark.parametrize("span", [(0, 1), (0, 17), (3, 4), (70, 9), (4, 1)])
def test_load_counts_keys_as_a_loop_does(span, window):
    start, new = span
    visible = [range(max(0, p - window + 1) if window else 0, p + 1) for p in range(start, start + new)]
    load = Load((span, (0, 2)), 1)
    other = Load(((0, 2),), 1)
    assert load.attended(window) - other.attended(window) == sum(map(len, visible))
    assert load.cached(window) - other.cached(window) == len(set().union(*visible))
    assert (load.size("T"), load.size("R"), load.size("L"), load.size(7)) == (new + 2, 2, 1, 7)
