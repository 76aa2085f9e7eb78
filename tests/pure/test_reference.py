"""Backends as a Step, the reference first: several requests, copies, held rows, input rows, what a result carries."""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from ridgeline.backends.reference import Reference
from ridgeline.ops.attention import PAGE
from ridgeline.program.batch import WANT_HIDDEN, WANT_HOLD, WANT_IDS, WANT_LOGITS, Batch, BatchLayout, Limits
from ridgeline.program.passes import pipeline
from ridgeline.weights.load import open_checkpoint


@pytest.fixture(scope="module", params=["smollm", "qwen2w"])
def checkpoint(request, tmp_path_factory):
    c = tiny.CONFIGS[request.param]
    return open_checkpoint(tiny.write_hf(tmp_path_factory.mktemp(request.param), c, tiny.weights(c)))


@pytest.fixture
def step(checkpoint, backend):
    c = checkpoint.config
    program = tiny.program_of(checkpoint, backend)
    limits = Limits(tokens=128, requests=3, rows=128, pages=3, vocab=c.vocab, hidden=c.hidden, held=4, input_rows=2)
    made = backend.compile(program, checkpoint.read, BatchLayout.of(limits, program.states), 20)
    for store in getattr(made, "states", {}).values():
        store.poison()
    return made


def batch(step, chunks, want=WANT_IDS | WANT_LOGITS):
    """A batch of (ids, first position, pages) chunks, one request each; every token is a row."""
    b, total = Batch(step.layout), sum(len(ids) for ids, *_ in chunks)
    b.resize(step=5, T=total, R=len(chunks), L=total)
    at = 0
    for r, (ids, first, pages) in enumerate(chunks):
        part, positions = slice(at, at + len(ids)), np.arange(first, first + len(ids))
        b["ids"][part], b["request"][part] = ids, r
        b["positions"][:, part], b["kv_len"][part] = positions, positions + 1
        for n, group in enumerate(step.layout.groups):
            table = np.array(pages) + 10 * n
            b[f"page_table.{group}"][r, : len(table)] = table
            b[f"kv_slot.{group}"][part] = table[positions // PAGE] * PAGE + positions % PAGE
        at += len(ids)
    b["out_rows"][:], b["want"][:] = np.arange(total), want
    s = b["sampler"]
    s["target"], s["mask_row"], s["top_p"], s["typical_p"], s["repetition"] = -1, -1, 1, 1, 1
    return b


A, B = tiny.prompt(70), tiny.prompt(20, seed=8)


def test_a_result_carries_what_was_wanted(step):
    result = step.run(batch(step, [(B, 0, [3])], WANT_IDS))
    assert result.step == 5 and result.ids.shape == (20,) and result.logits is None and result.hidden is None
    both = step.run(batch(step, [(B, 0, [3])], WANT_IDS | WANT_HIDDEN | WANT_LOGITS))
    assert both.hidden.shape == (20, step.layout.limits.hidden) and both.logits.shape == (20, 131)
    assert np.array_equal(both.ids, both.logits.argmax(1)) and np.array_equal(both.ids, result.ids)
    assert both.ids.dtype == np.int32 and (both.logprobs <= 0).all()


def test_requests_do_not_see_each_other(step):
    alone = [np.array(step.run(batch(step, [(x, 0, pages)])).logits) for x, pages in ((A, [6, 2]), (B, [4]))]
    together = step.run(batch(step, [(B, 0, [1]), (A, 0, [5, 0])])).logits
    assert np.array_equal(together, np.concatenate([alone[1], alone[0]]))


def test_a_copied_page_serves_another_request(step):
    """Copy on write: the copy is made first, then read and extended in the same step."""
    step.run(batch(step, [(A[:40], 0, [6])]))
    expected = np.array(step.run(batch(step, [(B, 40, [6])])).logits)
    b = batch(step, [(B, 40, [8])])
    b.resize(C=len(step.layout.groups))
    for n in range(len(step.layout.groups)):
        b["copies"][n] = n, (6 + 10 * n) * PAGE, (8 + 10 * n) * PAGE, 40
    assert np.array_equal(step.run(b).logits, expected)


def test_a_held_row_is_sampled_later(step):
    b = batch(step, [(B, 0, [3])], WANT_IDS | WANT_LOGITS | WANT_HOLD)
    b["hold_slot"][:] = [0, 1, 2, 3] * 5  # the last four rows stay
    first = step.run(b)
    later = batch(step, [(A[:3], 0, [4])])
    later["out_rows"][:] = [-1 - 2, 1, -1 - 0]
    logits = step.run(later).logits
    assert np.array_equal(logits[[0, 2]], first.logits[[18, 16]])
    assert np.array_equal(logits[1], step.run(batch(step, [(A[:3], 0, [5])])).logits[1])


def test_a_step_may_want_no_rows(step):
    b = batch(step, [(A, 0, [6, 2])])
    b.resize(L=0)
    result = step.run(b)
    assert result.ids.shape == (0,) and result.top_ids.shape == (0, 20)
    assert np.isfinite(step.run(batch(step, [(B, 70, [6, 2])])).logits).all(), "its keys were stored"


def test_a_step_may_carry_no_tokens(step):
    """Only rows held from earlier steps."""
    b = batch(step, [(B, 0, [3])], WANT_IDS | WANT_LOGITS | WANT_HOLD)
    b["hold_slot"][:] = [0, 1, 2, 3] * 5
    first = np.array(step.run(b).logits)
    later = batch(step, [])
    later.resize(L=2)
    later["out_rows"][:], later["want"][:] = [-1, -4], WANT_IDS | WANT_LOGITS
    later["sampler"][["target", "mask_row"]] = -1
    later["sampler"]["top_p"] = later["sampler"]["typical_p"] = later["sampler"]["repetition"] = 1
    assert np.array_equal(step.run(later).logits, first[[16, 19]])


def test_input_rows_replace_embeddings(step, checkpoint):
    table = tiny.weights(tiny.CONFIGS["smollm" if checkpoint.config.tied else "qwen2w"])["model.embed_tokens.weight"]
    b = batch(step, [(B, 0, [3])])
    b["ids"][[2, 7]] = 0
    b["input_row"][[2, 7]] = [1, 0]
    b["input_rows"][:] = table[[B[7], B[2]]]
    assert np.array_equal(step.run(b).logits, step.run(batch(step, [(B, 0, [4])])).logits)


def test_bf16_state_is_close_and_rounded(checkpoint):
    exact, rounded = (tiny.compile_model(checkpoint, Reference(), kv_format=f) for f in ("f32", "bf16"))
    a, b = (tiny.run_step(s, s.layout, A) for s in (exact, rounded))
    assert 0 < np.abs(a - b).max() < 0.3
    chunked = tiny.run_step(rounded, rounded.layout, A, (1, 30, 39))
    assert np.array_equal(b, chunked)


def test_int8_rows_are_close(checkpoint):
    program = pipeline.run(
        tiny.program_of(checkpoint, Reference()),
        pipeline.passes(lambda w: "f32", "f32", multiplies={"f32": ("i8g32",)})[3:],
    )
    exact = tiny.compile_model(checkpoint, Reference())
    rough = Reference().compile(program, checkpoint.read, exact.layout, 40)
    a, b = (tiny.run_step(s, s.layout, A) for s in (exact, rough))
    assert 0 < np.abs(a - b).max() < 0.05 * np.abs(a).max()


def test_greedy_continues_a_prompt(checkpoint):
    step = tiny.compile_model(checkpoint, Reference())
    ids = tiny.greedy(step, step.layout, B, 8)
    again = tiny.run_step(step, step.layout, [*B, *ids]).argmax(1)
    assert again[len(B) - 1 : -1].tolist() == ids
