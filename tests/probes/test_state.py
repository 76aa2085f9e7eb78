"""Spine probes on state: tree verification with compaction, and a recurrent state beside KV pages."""

from __future__ import annotations

import numpy as np
import pytest

from handmade import TINY, limits, logits, make_step, new_batch
from ridgeline.models import build
from ridgeline.models.llama import logits as head
from ridgeline.ops import OPS, add, attention, embedding, linear, rms_norm, take_rows
from ridgeline.ops.attention import PAGE
from ridgeline.ops.spec import Cost, op
from ridgeline.program.capture import capture
from ridgeline.program.ir import State
from ridgeline.program.verify import verify

TABLE = np.array([[3, 7, 1]])
PROMPT = [(5 * i + 2) % 131 for i in range(62)]  # the tree below crosses a page edge


def _slot(position: int) -> int:
    return int(TABLE[0, position // PAGE]) * PAGE + position % PAGE


def test_tree_rows_equal_their_own_branches_and_compact():
    """Root 20; children 30, 40; 40's child 50: each row as if its branch were the whole text, bit for bit."""
    step = make_step(build(TINY), limits(depth=4))
    nodes = {20: [20], 30: [20, 30], 40: [20, 40], 50: [20, 40, 50]}
    want = {n: logits(make_step(build(TINY)), PROMPT, branch)[-1] for n, branch in nodes.items()}
    logits(step, PROMPT)
    base = len(PROMPT)
    scratch = {n: _slot(base + i) for i, n in enumerate(nodes)}
    tree = new_batch(step.layout, [(0, list(nodes), base)], TABLE)
    tree["positions"][0] = [base + len(b) - 1 for b in nodes.values()]
    tree["kv_len"][:] = base
    tree["kv_slot.kv"][:] = list(scratch.values())
    for t, branch in enumerate(nodes.values()):
        tree["path"][t, : len(branch)] = [scratch[n] for n in branch]
    got = step.run(tree).logits
    for t, n in enumerate(nodes):
        np.testing.assert_array_equal(got[t], want[n])

    accepted = [20, 40, 50]
    after = new_batch(step.layout, [(0, [60], base + 3)], TABLE, step=2)
    after.resize(C=3)
    after["copies"][:] = [(0, scratch[n], _slot(base + i), 1) for i, n in enumerate(accepted)]
    expected = logits(make_step(build(TINY)), PROMPT, accepted, [60])[-1]
    np.testing.assert_array_equal(step.run(after).logits[0], expected)


def test_bidirectional_span_sees_ahead():
    step = make_step(build(TINY))
    causal = logits(step, PROMPT[:8])
    batch = new_batch(step.layout, [(0, PROMPT[:8], 0)], TABLE)
    batch["span"][2:5] = 5
    spanned = step.run(batch).logits
    np.testing.assert_array_equal(spanned[:2], causal[:2])
    assert not np.array_equal(spanned[2], causal[2])


class Decays:
    """Store of a recurrent layer: one row per page."""

    def __init__(self, state: State, pages: int) -> None:
        self.rows = np.zeros((pages, state.recurrent_bytes // 4), np.float32)


@pytest.fixture
def decay():
    """An extension op: h = 0.5 h + x, one running state per request, kept in the request's page of its group."""

    @op(
        "x:act memory:state page_table:field request:field kv_len:field",
        shape=lambda x, *_: x,
        cost=lambda call, load: Cost(0.0, 0.0, 0.0, call.act(load)),
        cases=lambda rng: (),
        tier="extension",
    )
    def decay(x, memory, page_table, request, kv_len):
        out = np.empty_like(x)
        for t, row in enumerate(x):
            page = page_table[request[t], 0]
            before = memory.rows[page] if kv_len[t] > 1 else 0
            memory.rows[page] = out[t] = np.float32(0.5) * before + row
        return out

    yield decay
    del OPS["decay"]


def test_recurrent_state_beside_kv(decay):
    hidden, heads, dim = TINY.hidden, TINY.n_heads, TINY.head_dim
    kv = State("kv", 1, TINY.n_kv_heads, dim)
    memory = State("memory", 1, kind="recurrent", reuse="snapshot", recurrent_bytes=kv.page_bytes)
    wide, narrow = heads * dim, kv.n_kv_heads * dim

    def model(m):
        x = embedding(m.field("ids"), m.weight("embed.weight", (TINY.vocab, hidden), ("vocab", "")))
        up = linear(x, m.weight("up.weight", (kv.page_bytes // 4, hidden), ("", "")))
        shared = (m.field("request"), m.field("kv_len"))
        h = decay(up, m.state(memory, 0), m.field("page_table.memory"), *shared)
        x = add(x, linear(h, m.weight("down.weight", (hidden, kv.page_bytes // 4), ("", ""))))
        q, k, v = (
            linear(x, m.weight(f"{n}.weight", (size, hidden), ("", "")))
            for n, size in (("q", wide), ("k", narrow), ("v", narrow))
        )
        y = attention(
            q, k, v, m.state(kv, 0), m.field("page_table.kv"), m.field("kv_slot.kv"), m.field("kv_len"),
            m.field("request"), n_heads=heads, scale=dim**-0.5,
        )  # fmt: skip
        kept = take_rows(add(x, y), m.field("out_rows"), m.field("held"))
        return kept, rms_norm(kept, m.weight("norm.weight", (hidden,), ("",)), eps=1e-5)

    program = verify(capture("hybrid", model, lambda m, h: head(m, TINY, h)))
    stores = {"recurrent": Decays, "kv": make_stores()}
    whole = logits(make_step(program, stores=stores), [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(whole, logits(make_step(program, stores=stores), [1, 2], [3], [4, 5]))
    np.testing.assert_array_equal(whole, logits(make_step(program, stores=stores), [1, 2, 3, 4, 5], table=[9, 2, 0]))


def make_stores():
    from ridgeline.backends.reference import STORES

    return STORES["kv"]
