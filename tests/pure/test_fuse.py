"""fuse merges what it says and nothing else, and the fused program computes the same values."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import tiny
from ridgeline import models, ops
from ridgeline.backends.reference import Reference
from ridgeline.models.hf import from_hf
from ridgeline.ops.spec import TensorType
from ridgeline.program.capture import Tracer, capture
from ridgeline.program.interpret import Bindings, interpret
from ridgeline.program.ir import Entry, Program
from ridgeline.program.passes.formats import bind_formats
from ridgeline.program.passes.fuse import concatenate, fuse
from ridgeline.program.verify import verify
from ridgeline.weights.load import open_checkpoint


def kinds(program):
    return [i.op for i in program.instrs]


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_fused_models_compute_the_same(tmp_path, name):
    c = tiny.CONFIGS[name]
    checkpoint = open_checkpoint(tiny.write_hf(tmp_path, c, tiny.weights(c)))
    plain, fused = (tiny.compile_model(checkpoint, Reference(), fused=f) for f in (False, True))
    ids = tiny.prompt(70)
    a, b = (tiny.run_step(s, s.layout, ids, (33,)) for s in (plain, fused))
    assert np.allclose(a, b, rtol=1e-6, atol=1e-5)
    assert np.array_equal(a.argmax(1), b.argmax(1))


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_what_is_merged(name):
    c = from_hf(tiny.CONFIGS[name])
    before, after = models.build(c), fuse(models.build(c))
    # per layer q/k/v become one and gate/up one; each residual add meets a norm, but the last one meets take_rows
    assert kinds(before).count("linear") - kinds(after).count("linear") == (3 if c.gated else 2) * c.layers
    adds = 2 * c.layers + c.learned_positions
    fused = adds - 1 if c.norm == "rms" else 0
    assert (kinds(after).count("add_rms_norm"), kinds(after).count("add")) == (fused, adds - fused)
    assert sum(np.prod(w.shape) for w in before.weights.values()) == sum(
        np.prod(w.shape) for w in after.weights.values()
    )
    merged = after.weights["layers.0.attn.q.weight+layers.0.attn.k.weight+layers.0.attn.v.weight"]
    assert merged.axes == ("heads+kv_heads", "")
    assert merged.parts == tuple(f"layers.0.attn.{x}.weight" for x in "qkv")
    assert merged.shape == ((c.n_heads + 2 * c.n_kv_heads) * c.head_dim, c.hidden)


def test_fusing_twice_changes_nothing_more():
    once = fuse(models.build(from_hf(tiny.CONFIGS["biased"])))
    twice = fuse(once)
    assert kinds(once) == kinds(twice) and list(once.weights) == list(twice.weights)


def program_of(build):
    """A verified program of one entry, recorded by build(m, x) with x [T, 8]."""
    m = Tracer()
    x = m.param(TensorType(("T", 8)))
    results = build(m, x)
    entry = Entry((x.view.buffer,), m.take(), tuple(r.operand for r in results))
    return verify(Program("toy", entry, Entry((), (), ())))


def weight(m, name, rows=8, columns=8):
    return m.weight(name, (rows, columns), ("ffn", ""))


def both(program, seed=0):
    """Results before and after fusion on random values."""
    rng = np.random.default_rng(seed)
    fused = verify(fuse(program))
    values = {w.name: rng.standard_normal(w.shape).astype(np.float32) for w in program.weights.values()}
    for w in fused.weights.values():
        if len(w.parts) > 1:
            values[w.name] = np.concatenate([values[p] for p in w.parts])
    x = rng.standard_normal((3, 8)).astype(np.float32)
    runs = [interpret(p.forward, [x], Bindings({}, values, {}, {})) for p in (program, fused)]
    return fused, runs


def test_results_follow_a_merged_linear():
    program = program_of(lambda m, x: [ops.linear(x, weight(m, "a")), ops.linear(x, weight(m, "b", 4))])
    fused, (a, b) = both(program)
    assert kinds(fused) == ["linear"]
    assert [(r.start, r.stop) for r in fused.forward.results] == [(0, 8), (8, 12)]
    assert all(np.allclose(x, y, atol=1e-6) for x, y in zip(a, b, strict=True))


def test_views_of_merged_outputs_are_moved():
    def build(m, x):
        a, b = ops.linear(x, weight(m, "a")), ops.linear(x, weight(m, "b"))
        return [ops.add(a[:, 2:6], b[:, 4:8])]

    fused, (a, b) = both(program_of(build))
    add = fused.forward.instrs[-1]
    assert [(v.start, v.stop) for v in add.operands.values()] == [(2, 6), (12, 16)]
    assert np.allclose(a[0], b[0], atol=1e-6)


def test_a_chain_of_merges():
    """The merged linear of the second pair reads a view of the first."""

    def build(m, x):
        a, b = ops.linear(x, weight(m, "a")), ops.linear(x, weight(m, "b"))
        return [ops.linear(b, weight(m, "c")), ops.linear(b, weight(m, "d")), a]

    fused, (a, b) = both(program_of(build))
    assert kinds(fused) == ["linear", "linear"]
    assert all(np.allclose(x, y, atol=1e-5) for x, y in zip(a, b, strict=True))


def test_different_rows_scopes_biases_and_formats_stay_apart():
    def build(m, x):
        a = ops.linear(x[:, 0:4], weight(m, "a", 8, 4))
        b = ops.linear(x[:, 4:8], weight(m, "b", 8, 4))
        with m.scope("one"):
            c = ops.linear(x, weight(m, "c"))
        with m.scope("two"):
            d = ops.linear(x, weight(m, "d"), m.weight("e", (8,), ("ffn",)))
            f = ops.linear(x, weight(m, "f"))
        return [a, b, c, d, f]

    assert kinds(fuse(program_of(build))) == ["linear"] * 5
    two = program_of(lambda m, x: [ops.linear(x, weight(m, "a")), ops.linear(x, weight(m, "b"))])
    formats = {"a": "q4_1", "b": "q8_0"}
    assert kinds(fuse(bind_formats(two, lambda w: formats[w.name]))) == ["linear", "linear"]


def test_an_add_that_is_read_in_between_is_not_merged_past_its_reader():
    def build(m, x):
        y = ops.add(x, x)
        z = ops.gelu(y)
        return [ops.rms_norm(y, m.weight("w", (8,), ("",)), eps=1e-5), z]

    fused, (a, b) = both(program_of(build))
    assert kinds(fused) == ["add", "gelu", "rms_norm"]
    assert np.array_equal(a[0], b[0])


@pytest.mark.parametrize("norm", ["heads", "columns", "other"])
def test_norms_that_are_not_of_the_whole_sum_stay(norm):
    def build(m, x):
        y = ops.add(x, x)
        if norm == "heads":
            return [ops.rms_norm(y, m.weight("w", (4,), ("",)), eps=1e-5, width=4)]
        if norm == "columns":
            return [ops.rms_norm(y[:, 0:4], m.weight("w", (4,), ("",)), eps=1e-5)]
        return [ops.rms_norm(x, m.weight("w", (8,), ("",)), eps=1e-5), y]

    fused, (a, b) = both(program_of(build))
    assert kinds(fused) == ["add", "rms_norm"]
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_sum_of_a_merged_add_stays_readable():
    fused, (a, b) = both(
        program_of(lambda m, x: [ops.rms_norm(y := ops.add(x, x), m.weight("w", (8,), ("",)), eps=1e-5), ops.gelu(y)])
    )
    assert kinds(fused) == ["add_rms_norm", "gelu"]
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_both_entries_are_fused():
    def logits(m, h):
        return ops.add(ops.linear(h, weight(m, "a", 16)), ops.linear(h, weight(m, "b", 16)))

    def forward(m):
        x = ops.take_rows(ops.embedding(m.field("ids"), m.weight("e", (16, 8), ("vocab", ""))), m.field("out_rows"))
        return x, x

    fused = verify(fuse(capture("toy", forward, logits)))
    assert [i.op for i in fused.sample.instrs] == ["linear", "add", "sample"]
    ids = [b.id for i in fused.instrs for b in i.outputs] + [b.id for b in fused.sample.params]
    assert len(ids) == len(set(ids))


def test_concatenate_keeps_row_cuts():
    m = Tracer()
    a, b = (dataclasses.replace(weight(m, n).operand, rows=((2, 10),)) for n in "ab")
    joined = concatenate([a, b])
    assert (joined.name, joined.parts, joined.rows, joined.shape) == ("a+b", ("a", "b"), ((2, 10), (2, 10)), (16, 8))
