"""Capture: what a model function leaves behind, and that the same function computes when it is handed arrays."""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from ridgeline import models, ops
from ridgeline.models.hf import from_hf
from ridgeline.ops.attention import KVPages
from ridgeline.ops.spec import TensorType
from ridgeline.program.batch import FIELDS, PER_GROUP, BatchLayout, Limits
from ridgeline.program.capture import Eager, Tracer, capture
from ridgeline.program.interpret import Bindings, interpret
from ridgeline.program.ir import Field, State, View
from ridgeline.program.verify import verify

NAMES = list(tiny.CONFIGS)


def config(name):
    return from_hf(tiny.CONFIGS[name])


def inputs(program, c, tokens=70):
    """Fields, weights and fresh states of one request of `tokens` tokens, all of them wanted."""
    layout = BatchLayout.of(
        Limits(tokens=tokens, requests=1, rows=tokens, pages=3, vocab=c.vocab, hidden=c.hidden), program.states
    )
    runner = tiny.Runner(_Grab(), layout)
    fields = runner.feed(tiny.prompt(tokens))
    fields["held"] = np.zeros((0, c.hidden), np.float32)
    rng = np.random.default_rng(4)
    weights = {
        w.name: np.array(w.constant, np.float32)
        if w.constant is not None
        else (rng.standard_normal(w.shape) / 8 + (len(w.shape) == 1)).astype(np.float32)
        for w in program.weights.values()
    }
    return (
        fields,
        weights,
        lambda: {
            (s.name, i): KVPages.empty(6 * len(program.states), s.n_kv_heads, s.head_dim).poison()
            for s in program.states
            for i in range(s.layers)
        },
    )


class _Grab:
    def run(self, batch):
        return batch.fields()


@pytest.mark.parametrize("name", NAMES)
def test_eager_equals_interpreted(name):
    """The definition of the model is one function: run on arrays, it gives what its program gives."""
    c = config(name)
    program = models.build(c)
    family = models.FAMILIES[c.family]
    fields, weights, states = inputs(program, c)
    m = Eager(fields, weights, states())
    kept, hidden = family.forward(m, c)
    logits = family.logits(m, c, hidden)
    bindings = Bindings(fields, weights, states(), {})
    got = interpret(program.forward, [], bindings)
    assert np.array_equal(got[0], kept) and np.array_equal(got[1], hidden)
    assert np.array_equal(interpret(program.sample, [got[1]], bindings)[4], logits)
    assert np.isfinite(logits).all() and logits.std() > 0.1


def test_eager_checks_the_shape_of_a_weight():
    with pytest.raises(AssertionError, match="w: "):
        Eager({}, {"w": np.zeros((2, 3))}, {}).weight("w", (3, 2), ("", ""))


@pytest.mark.parametrize("name", NAMES)
def test_program_of_a_model(name):
    c = config(name)
    program = verify(models.build(c))
    count = {
        op: sum(i.op == op for i in program.instrs) for op in ("attention", "linear", "rotary", "sample", "embedding")
    }
    rotary = (c.rope is not None) + (c.local_rope is not None)
    linear = (7 if c.gated else 6) * c.layers + 1
    embedding = 1 + c.learned_positions
    assert count == {
        "attention": c.layers, "linear": linear, "rotary": rotary, "sample": 1, "embedding": embedding,
    }  # fmt: skip
    constants = {w.name for w in program.weights.values() if w.constant is not None}
    assert all(w in constants or w.endswith((".weight", ".bias")) for w in program.weights)
    assert len(constants) == rotary + (c.alibi > 0)
    assert ("head.weight" in program.weights) == (not c.tied)
    assert program.forward.params == () and len(program.sample.params) == 1
    assert [r.type.shape for r in program.forward.results] == [("L", c.hidden)] * 2
    assert [r.type.shape for r in program.sample.results] == [("L",), ("L",), ("L", 20), ("L", 20), ("L", c.vocab)]


def test_every_field_of_a_program_is_in_the_batch():
    program = models.build(config("qwen2w"))
    assert [s.name for s in program.states] == ["kv", "kv40"]
    per_group = {f"{f}.{s.name}" for f in PER_GROUP for s in program.states}
    fields = {x.name for x in program.operands() if isinstance(x, Field)}
    assert fields - per_group <= set(FIELDS) | {"held"}
    assert per_group <= fields


def test_scope_and_source_line():
    program = models.build(config("llama"))
    by_scope = {i.scope: i.where for i in program.instrs}
    assert {"layers.0.attn", "layers.1.mlp", "out", "sample"} <= set(by_scope)
    assert by_scope["layers.0.attn"].startswith("decoder.py:")
    assert all(
        ":" in where and where.split(":")[0] in ("decoder.py", "blocks.py")
        for i in program.forward.instrs
        for where in [i.where]
    )


def test_scopes_nest():
    m = Tracer()
    x = m.param(TensorType(("T", 8)))
    with m.scope("outer"):
        with m.scope("inner"):
            ops.add(x, x)
        ops.add(x, x)
    ops.add(x, x)
    assert [i.scope for i in m.take()] == ["outer.inner", "outer", ""]
    assert m.take() == ()


@pytest.mark.parametrize(
    ("start", "stop", "expected"), [(None, 4, (0, 4)), (4, None, (4, 8)), (-2, None, (6, 8)), (0, 99, (0, 8))]
)
def test_a_column_slice_is_a_view(start, stop, expected):
    m = Tracer()
    x = m.param(TensorType(("T", 8)))
    view = x[:, start:stop].operand
    assert isinstance(view, View) and (view.start, view.stop) == expected
    assert m.take() == (), "a view is not an instruction"
    nested = x[:, 2:7][:, 1:3].operand
    assert (nested.start, nested.stop) == (3, 5)


def test_only_columns_can_be_sliced():
    x = Tracer().param(TensorType(("T", 8)))
    for key in ((slice(0, 1), slice(0, 4)), (slice(None), slice(0, 8, 2))):
        with pytest.raises(AssertionError, match="column slices"):
            x[key]


def test_an_array_among_traced_values_is_refused():
    m = Tracer()
    with pytest.raises(AssertionError, match="m.constant"):
        ops.rms_norm(m.param(TensorType(("T", 8))), np.ones(8, np.float32), eps=1e-5)


def test_a_missing_operand_is_refused():
    m = Tracer()
    with pytest.raises(AssertionError, match="operand w is missing"):
        ops.rms_norm(m.param(TensorType(("T", 8))), eps=1e-5)
    with pytest.raises(AssertionError, match="too many operands"):
        ops.add(*[m.param(TensorType(("T", 8)))] * 3)


def test_an_unknown_field_or_layer_is_refused():
    m = Tracer()
    with pytest.raises(KeyError):
        m.field("nonsense")
    with pytest.raises(AssertionError, match="no layer 2"):
        m.state(State("kv", 2, 1, 8), 2)
    assert isinstance(m.field("page_table.kv40").operand, Field)


def test_two_captures_share_nothing():
    first, second = models.build(config("llama")), models.build(config("llama"))
    assert first == second and first.forward.instrs[0] is not second.forward.instrs[0]


def test_capture_of_a_function_written_here():
    def forward(m):
        x = ops.embedding(m.field("ids"), m.weight("e", (16, 8), ("vocab", "")))
        kept = ops.take_rows(ops.gelu(x), m.field("out_rows"))
        return kept, ops.softcap(kept, cap=3.0)

    program = verify(capture("toy", forward, lambda m, h: ops.linear(h, m.weight("e", (16, 8), ("vocab", "")))))
    assert [i.op for i in program.instrs] == ["embedding", "gelu", "take_rows", "softcap", "linear", "sample"]
    table = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    fields = {"ids": np.array([3, 5, 3]), "out_rows": np.array([2, 0])}
    kept, hidden = interpret(program.forward, [], Bindings(fields, {"e": table}, {}, {}))
    assert np.array_equal(kept, ops.gelu(table[[3, 3]])) and np.array_equal(hidden, ops.softcap(kept, cap=3.0))


def test_interpret_watches_every_instruction():
    program = models.build(config("smollm"))
    fields, weights, states = inputs(program, config("smollm"), tokens=3)
    seen = []
    interpret(
        program.forward, [], Bindings(fields, weights, states(), {}), lambda i, outs: seen.append((i.op, len(outs)))
    )
    assert [op for op, _ in seen] == [i.op for i in program.forward.instrs]
