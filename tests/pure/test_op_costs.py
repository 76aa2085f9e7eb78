"""The cost rule of every op against numbers counted by hand for one step."""

from __future__ import annotations

import dataclasses

import pytest

from ridgeline import ops
from ridgeline.ops import OPS
from ridgeline.ops.spec import Call, Load, TensorType
from ridgeline.program.capture import Tracer
from ridgeline.program.cost import instr_cost
from ridgeline.program.ir import CommRef, State, StateRef, Weight

# Two requests, one with 10 cached keys and 1 new token, one with 0 and 7; 3 rows.
LOAD = Load(((10, 1), (0, 7)), 3)
T, L = 8, 3


def act(columns, rows="T", dtype="f32"):
    return TensorType((rows, columns), dtype)


def weight(*shape):
    return TensorType(shape)


COSTS = {  # op: (operands, attrs, weight bytes, expected flops, weight, kv and activation bytes)
    "linear": ({"x": act(64), "w": weight(10, 64)}, {}, {"w": 400.0}, (2 * T * 10 * 64, 400, 0, 4 * T * 74)),
    "linear i8": (
        {"x": act(64, dtype="i8g32"), "w": weight(10, 64)}, {}, {"w": 400.0},
        (2 * T * 10 * 64, 400, 0, T * (64 + 16) + 4 * T * 10),
    ),
    "quantize_act": ({"x": act(64)}, {}, {}, (4 * T * 64, 0, 0, 4 * T * 64 + T * (64 + 16))),
    "rms_norm": ({"x": act(64), "w": weight(64)}, {"eps": 1e-5}, {"w": 256.0}, (4 * T * 64, 256, 0, 8 * T * 64)),
    "add_rms_norm": (
        {"x": act(64), "y": act(64), "w": weight(64)}, {"eps": 1e-5}, {"w": 256.0}, (5 * T * 64, 256, 0, 16 * T * 64),
    ),
    "layer_norm": (
        {"x": act(64), "w": weight(64), "b": weight(64)}, {"eps": 1e-5}, {"w": 256.0, "b": 256.0},
        (7 * T * 64, 512, 0, 8 * T * 64),
    ),
    "add": ({"x": act(64), "y": act(64)}, {}, {}, (T * 64, 0, 0, 12 * T * 64)),
    "mul": ({"x": act(64), "y": act(64)}, {}, {}, (T * 64, 0, 0, 12 * T * 64)),
    "silu_mul": ({"gate": act(64), "up": act(64)}, {}, {}, (6 * T * 64, 0, 0, 12 * T * 64)),
    "gelu_mul": ({"gate": act(64), "up": act(64)}, {}, {}, (10 * T * 64, 0, 0, 12 * T * 64)),
    "gelu": ({"x": act(64)}, {}, {}, (9 * T * 64, 0, 0, 8 * T * 64)),
    "relu2": ({"x": act(64)}, {}, {}, (2 * T * 64, 0, 0, 8 * T * 64)),
    "softcap": ({"x": act(64)}, {"cap": 2.0}, {}, (3 * T * 64, 0, 0, 8 * T * 64)),
    "rotary": (
        {"positions": TensorType((1, "T"), "i32"), "inv_freq": weight(8)}, {}, {"inv_freq": 32.0},
        (20 * T * 16, 32, 0, 4 * T + 4 * T * 16),
    ),
    "rope": ({"x": act(64), "angles": act(16)}, {"head_dim": 16}, {}, (3 * T * 64, 0, 0, 8 * T * 64 + 4 * T * 16)),
    "embedding": (
        {"ids": TensorType(("T",), "i32"), "table": weight(100, 64)}, {}, {"table": 100 * 40.0},
        (0, T * 40, 0, 4 * T + 4 * T * 64),
    ),
    "take_rows": ({"x": act(64), "out_rows": TensorType(("L",), "i32")}, {}, {}, (0, 0, 0, 8 * L * 64)),
    "all_reduce": ({"x": act(64), "comm": CommRef("tp", 2)}, {}, {}, (0, 0, 0, 16 * T * 64)),
    "all_gather": ({"x": act(64), "comm": CommRef("tp", 2)}, {}, {}, (0, 0, 0, 4 * T * 64 + 4 * T * 128)),
    "sample": ({"logits": act(100, "L")}, {}, {}, (4 * L * 100, 0, 0, 4 * L * 100)),
}  # fmt: skip


def test_every_op_has_a_hand_counted_cost():
    assert {name.split()[0] for name in COSTS} | {"attention"} == set(OPS)


@pytest.mark.parametrize("name", COSTS)
def test_cost_rule_equals_hand_count(name):
    ins, attrs, weights, expected = COSTS[name]
    spec = OPS[name.split()[0]]
    outs = spec.shape(*ins.values(), **attrs)
    got = spec.cost(Call(ins, outs if isinstance(outs, tuple) else (outs,), attrs, weights), LOAD)
    assert (got.flops, got.weight_bytes, got.kv_bytes, got.act_bytes) == expected


@pytest.mark.parametrize(
    ("window", "attended", "read"),
    [(0, 11 + 28, 11 + 7), (5, 5 + (1 + 2 + 3 + 4 + 5 + 5 + 5), 5 + 7), (100, 39, 18)],
)
def test_attention_cost_equals_hand_count(window, attended, read):
    state = StateRef(State("kv", 1, n_kv_heads=2, head_dim=16, format="bf16"), 0)
    token = 2 * 2 * 16 * 2  # key and value, two heads of 16, two bytes each
    ins = {"q": act(64), "k": act(32), "v": act(32), "kv": state}
    got = OPS["attention"].cost(Call(ins, (act(64),), {"n_heads": 4, "window": window}, {}), LOAD)
    assert got.flops == 4 * 4 * 16 * attended
    assert got.kv_bytes == token * (read + T)
    assert got.act_bytes == 4 * T * (64 + 32 + 32 + 64)


def test_cost_of_an_instruction_does_not_count_a_weight_as_activation():
    m = Tracer()
    x = m.param(act(64))
    ops.linear(x, m.weight("w", (10, 64), ("", "")))
    [instr] = m.take()
    held = {k: dataclasses.replace(v, format="q4_1") if isinstance(v, Weight) else v for k, v in instr.operands.items()}
    cost = instr_cost(dataclasses.replace(instr, operands=held), LOAD)
    assert (cost.weight_bytes, cost.act_bytes) == (10 * 2 * 20, 4 * T * 74)
