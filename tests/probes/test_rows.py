"""Spine probes on rows: LoRA by row, learned positions, input rows, hidden output, held rows."""

from __future__ import annotations

import numpy as np
import pytest

from handmade import TINY, limits, logits, make_step, new_batch
from ridgeline.models import build
from ridgeline.models.llama import forward
from ridgeline.models.llama import logits as head
from ridgeline.ops import OPS, add, embedding, linear, rms_norm, take_rows
from ridgeline.ops.spec import Cost, op
from ridgeline.program.batch import WANT_HIDDEN, WANT_HOLD, WANT_IDS
from ridgeline.program.capture import capture
from ridgeline.program.verify import verify

TABLE = np.array([[3, 7, 1]])


@pytest.fixture
def lora():
    """An extension op: adds scale * B[a] A[a] x to the rows whose adapter a >= 0."""

    @op(
        "x:act y:act adapter:field a:weight b:weight",
        shape=lambda x, y, adapter, a, b, rank: y,
        cost=lambda call, load: Cost(0.0, 0.0, 0.0, call.act(load)),
        cases=lambda rng: (),
        tier="extension",
    )
    def lora(x, y, adapter, a, b, *, rank):
        out = y.copy()
        for t, which in enumerate(adapter):
            if which >= 0:
                rows = slice(which * rank, (which + 1) * rank)
                out[t] += b[:, rows] @ (a[rows] @ x[t])
        return out

    yield lora
    del OPS["lora"]


def _toy(lora_op, rank=2, adapters=3):
    hidden, vocab = TINY.hidden, TINY.vocab

    def model(m):
        x = embedding(m.field("ids"), m.weight("embed.weight", (vocab, hidden), ("vocab", "")))
        y = linear(x, m.weight("up.weight", (hidden, hidden), ("", "")))
        if lora_op is not None:
            a = m.weight("up.lora_a", (adapters * rank, hidden), ("", ""))
            b = m.weight("up.lora_b", (hidden, adapters * rank), ("", ""))
            y = lora_op(x, y, m.field("adapter"), a, b, rank=rank)
        kept = take_rows(add(x, y), m.field("out_rows"), m.field("held"))
        return kept, rms_norm(kept, m.weight("norm.weight", (hidden,), ("",)), eps=1e-5)

    return verify(capture("toy", model, lambda m, h: head(m, TINY, h)))


def test_lora_rows_mix_in_one_batch(lora):
    step, plain = make_step(_toy(lora)), make_step(_toy(None))
    batch = new_batch(step.layout, [(0, [5, 6, 7, 8], 0)], TABLE)
    batch["adapter"][:] = [-1, 0, 2, -1]
    mixed = step.run(batch).logits
    base = plain.run(new_batch(plain.layout, [(0, [5, 6, 7, 8], 0)], TABLE)).logits
    np.testing.assert_array_equal(mixed[[0, 3]], base[[0, 3]])
    w, a, b = (step.weights[k] for k in ("up.weight", "up.lora_a", "up.lora_b"))
    for row, adapter in ((1, 0), (2, 2)):
        rows = slice(2 * adapter, 2 * adapter + 2)
        merged = dict(plain.weights, **{"up.weight": w + b[:, rows] @ a[rows]})
        plain_merged = make_step(_toy(None))
        plain_merged.weights = merged
        want = plain_merged.run(new_batch(plain.layout, [(0, [5, 6, 7, 8], 0)], TABLE)).logits[row]
        np.testing.assert_allclose(mixed[row], want, atol=1e-5)


def test_learned_positions():
    hidden, vocab = TINY.hidden, TINY.vocab

    def model(m):
        x = embedding(m.field("ids"), m.weight("embed.weight", (vocab, hidden), ("vocab", "")))
        places = embedding(m.field("positions"), m.weight("places.weight", (128, hidden), ("", "")), axis=0)
        kept = take_rows(add(x, places), m.field("out_rows"), m.field("held"))
        return kept, rms_norm(kept, m.weight("norm.weight", (hidden,), ("",)), eps=1e-5)

    step = make_step(verify(capture("learned", model, lambda m, h: head(m, TINY, h))))
    whole = logits(step, [5, 5, 5, 5])
    np.testing.assert_array_equal(whole, logits(step, [5, 5], [5, 5]))
    assert not np.array_equal(whole[0], whole[1])


def test_input_rows_override_embeddings():
    step = make_step(build(TINY), limits(input_rows=4))
    want = logits(step, [5, 9, 11])
    batch = new_batch(step.layout, [(0, [5, 0, 11], 0)], TABLE)
    batch["input_row"][:] = [-1, 2, -1]
    batch["input_rows"][2] = step.weights["embed.weight"][9]
    np.testing.assert_array_equal(step.run(batch).logits, want)


def test_hidden_rows_are_given_on_request():
    step = make_step(build(TINY))
    batch = new_batch(step.layout, [(0, [5, 9, 11], 0)], TABLE)
    batch["want"][:] = WANT_IDS | WANT_HIDDEN
    result = step.run(batch)
    assert result.hidden.shape == (3, TINY.hidden) and result.logits is None
    want = logits(step, [5, 9, 11])
    np.testing.assert_allclose(result.hidden @ step.weights["embed.weight"].T, want, atol=1e-5)


def test_a_held_row_samples_later():
    """A row whose mask is late keeps its hidden row and samples in a later step: the same token."""
    step = make_step(build(TINY), limits(held=4))
    now = step.run(new_batch(step.layout, [(0, [5, 9, 11], 0)], TABLE))
    late = new_batch(step.layout, [(0, [5, 9, 11], 0)], TABLE)
    late["want"][2], late["hold_slot"][2] = WANT_HOLD, 3
    step.run(late)
    other = new_batch(step.layout, [(1, [40, 41], 0)], np.array([[3, 7, 1], [4, 5, 6]]))
    other["out_rows"][0] = -1 - 3
    assert step.run(other).ids[0] == now.ids[2]


def test_the_same_model_function_runs_eagerly():
    from ridgeline.program.capture import Eager

    step = make_step(build(TINY))
    want = logits(step, [5, 9, 11])
    batch = new_batch(step.layout, [(0, [5, 9, 11], 0)], TABLE)
    eager = Eager({**batch.fields(), "held": step.held}, step.weights, step.states)
    _, hidden = forward(eager, TINY)
    np.testing.assert_array_equal(head(eager, TINY, hidden), want)
