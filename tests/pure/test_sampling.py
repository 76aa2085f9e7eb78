"""The sampler: each rule against a plain restatement, its order, and the distribution it draws from (chi-square)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draws import check_draws, expected_distribution, softmax
from ridgeline import ops
from ridgeline.ops.sample import (
    COUNT_PROMPT,
    MAX_TOP,
    PROCESSED,
    PURPOSE_PICK,
    REPEAT_PROMPT,
    SAMPLER,
    exponential,
    noise_key,
)

VOCAB = 30
DRAWS = 2500
NOTHING = [np.zeros(0, np.int32)] * 6  # no bias, no history, no mask


def records(rows=1, **values):
    s = np.zeros(rows, SAMPLER)
    s["target"], s["mask_row"], s["top_p"], s["typical_p"], s["repetition"] = -1, -1, 1, 1, 1
    s["temperature"] = 1
    for name, value in values.items():
        s[name] = value
    return s


def run(logits, s, bias=(), history=(), masks=()):
    """sample over rows of logits; `bias` (id, value) and `history` (id, in prompt, in output) belong to every row."""
    s = s.copy()
    if bias:
        s["bias_stop"] = len(bias)
    if history:
        s["history_stop"] = len(history)
    ids, values = zip(*bias, strict=True) if bias else ((), ())
    past, prompt, output = zip(*history, strict=True) if history else ((), (), ())
    ints = (np.array(x, np.int32) for x in (past, prompt, output))
    packed = np.zeros((len(masks), -(-VOCAB // 32)), np.uint32)
    for row, allowed in enumerate(masks):
        for token in allowed:
            packed[row, token // 32] |= np.uint32(1 << token % 32)
    return ops.sample(
        np.asarray(logits, np.float32), s, np.array(ids, np.int32), np.array(values, np.float32), *ints, packed
    )


def logits_of(seed, rows=1):
    return (2 * np.random.default_rng(seed).standard_normal((rows, VOCAB))).astype(np.float32)


RULES = {
    "plain": {},
    "hot": {"temperature": 1.7},
    "cold": {"temperature": 0.4},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.2},
    "k_then_p": {"top_k": 8, "top_p": 0.7},
    "all": {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    "k_over_vocab": {"top_k": 1000},
    "typical": {"typical_p": 0.6},
    "k_then_typical": {"top_k": 15, "typical_p": 0.6},
    "everything": {"temperature": 1.4, "top_k": 25, "top_p": 0.95, "min_p": 0.05, "typical_p": 0.8},
}


@pytest.mark.parametrize("vary", ["seed", "position", "choice"])
@pytest.mark.parametrize("rule", RULES)
def test_draws_follow_the_distribution(rule, vary):
    x = logits_of(3)[0] / 3
    s = records(DRAWS, **RULES[rule], **({} if vary == "seed" else {"seed": 99}))
    s[vary] = np.arange(DRAWS)
    ids = run(np.tile(x, (DRAWS, 1)), s)[0]
    check_draws(ids, expected_distribution(x, **RULES[rule]))


def test_noise_is_exponential_and_independent_of_neighbours():
    keys = [noise_key(seed, 0, 0, PURPOSE_PICK) for seed in range(2000)]
    first, second = (np.concatenate([exponential(k, np.array([i])) for k in keys]) for i in (0, 1))
    assert abs(first.mean() - 1) < 0.12 and abs(second.mean() - 1) < 0.12
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    assert (first > 0).all()


def test_every_draw_has_its_own_key():
    """In particular (seed 1, choice 2) is not (seed 2, choice 1), and seed == choice is nothing special."""
    parts = [(s, c, p, k) for s in range(5) for c in range(5) for p in range(5) for k in (1, 2)]
    assert len({noise_key(*x) for x in parts}) == len(parts)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_nothing_to_sample_is_said(temperature, value):
    ids, logprobs, *_ = run(np.full((1, VOCAB), value, np.float32), records(temperature=temperature, top_p=0.9))
    assert ids[0] == -1 and logprobs[0] == -np.inf


HANDMADE = [  # probabilities, typical_p, what is left
    ([0.5, 0.3, 0.2, 0, 0], 0.2, [1]),  # surprises 0.69, 1.20, 1.61 around 1.03
    ([0.5, 0.3, 0.2, 0, 0], 0.4, [0, 1]),
    ([0.5, 0.3, 0.2, 0, 0], 0.9, [0, 1, 2]),
    ([0.25, 0.25, 0.25, 0.25, 0], 0.3, [0, 1, 2, 3]),  # equally typical: all stay
    ([0.9, 0.025, 0.025, 0.025, 0.025], 0.5, [0]),
    ([0.4, 0.15, 0.15, 0.15, 0.15], 0.3, [1, 2, 3, 4]),  # 0.92, 1.90 around 1.50
    ([1, 0, 0, 0, 0], 0.1, [0]),
]


@pytest.mark.parametrize(("p", "typical_p", "left"), HANDMADE)
def test_typical_tokens(p, typical_p, left):
    with np.errstate(divide="ignore"):
        x = np.log(np.array([p + [0] * (VOCAB - 5)], np.float32))
    ids, _, top_ids, top_logprobs = run(x, records(typical_p=typical_p, flags=PROCESSED, n_top=5))
    kept = top_logprobs[0] > -np.inf
    assert sorted(top_ids[0][kept].tolist()) == left and ids[0] in left
    rest = np.array([p[i] for i in left])
    assert np.allclose(np.exp(top_logprobs[0][kept]), np.sort(rest)[::-1] / rest.sum(), atol=1e-5)


def test_typical_comes_after_the_other_cuts():
    """Without the tail, the entropy falls and with it what is typical."""
    p = np.array([0.3, 0.2, *[0.05] * 10, *[0] * (VOCAB - 12)])
    with np.errstate(divide="ignore"):
        x = np.log(p)[None].astype(np.float32)
    rows = np.tile(x, (200, 1))
    assert set(run(rows, records(200, seed=np.arange(200), typical_p=0.15))[0]) == {1}
    assert set(run(rows, records(200, seed=np.arange(200), typical_p=0.15, top_k=2))[0]) == {0}


@pytest.mark.parametrize("rule", [{}, {"top_p": 0.5}, {"min_p": 0.5}, {"typical_p": 0.5}, {"top_k": 3}])
def test_an_infinite_logit_is_taken(rule):
    x = logits_of(9)
    x[0, [4, 17]] = np.inf
    assert run(x, records(**rule))[0][0] == 4


def test_greedy_is_the_first_maximum():
    x = np.zeros((1, VOCAB), np.float32)
    x[0, [7, 11]] = 5
    assert run(x, records(temperature=0))[0][0] == 7


def test_a_row_does_not_depend_on_the_others():
    x = logits_of(1, 6)
    s = records(6, seed=np.arange(6), top_k=[0, 3, 0, 4, 0, 5], n_top=3)
    together = run(x, s)
    for i in range(6):
        for a, b in zip(run(x[i : i + 1], s[i : i + 1]), together, strict=True):
            assert np.array_equal(a[0], b[i])


def test_logprobs_and_alternatives_are_the_models_own():
    x = logits_of(2)
    ids, logprobs, top_ids, top_logprobs = run(x, records(temperature=0.3, top_k=2, n_top=4))
    p = np.log(softmax(x[0]))
    assert np.isclose(logprobs[0], p[ids[0]], atol=1e-5)
    best = np.argsort(-p)[:4]
    assert top_ids[0, :4].tolist() == best.tolist() and np.allclose(top_logprobs[0, :4], p[best], atol=1e-5)
    assert (top_ids[0, 4:] == -1).all() and (top_logprobs[0, 4:] == -np.inf).all()


def test_processed_logprobs_are_of_the_distribution_drawn_from():
    x, rule = logits_of(2), {"temperature": 0.7, "top_k": 6, "min_p": 0.02}
    ids, logprobs, _, top_logprobs = run(x, records(flags=PROCESSED, n_top=8, **rule))
    q = expected_distribution(x[0], **rule)
    assert np.isclose(math.exp(logprobs[0]), q[ids[0]], atol=1e-5)
    assert np.allclose(np.exp(top_logprobs[0, :8]), np.sort(q)[::-1][:8], atol=1e-5)


@pytest.mark.parametrize("n_top", [0, 1, MAX_TOP])
def test_a_given_token_is_reported_not_drawn(n_top):
    x = logits_of(4)
    ids, logprobs, top_ids, _ = run(x, records(target=13, n_top=n_top))
    assert ids[0] == 13 and np.isclose(logprobs[0], np.log(softmax(x[0]))[13], atol=1e-5)
    assert (top_ids[0] >= 0).sum() == n_top


def test_more_alternatives_than_tokens():
    ids, _, top_ids, _ = ops.sample(np.zeros((1, 4), np.float32), records(n_top=MAX_TOP), *NOTHING)
    assert ids[0] < 4 and sorted(top_ids[0, :4]) == [0, 1, 2, 3] and (top_ids[0, 4:] == -1).all()


def test_bias_adds_and_bans():
    x = np.zeros((1, VOCAB), np.float32)
    assert run(x, records(temperature=0), bias=[(5, 1.0), (6, 2.0), (6, -0.5)])[0][0] == 6
    for seed in range(50):
        assert run(x, records(seed=seed), bias=[(t, -np.inf) for t in range(VOCAB - 1)])[0][0] == VOCAB - 1


def test_mask_allows_only_its_tokens():
    allowed = [3, 17, 29]
    drawn = {int(run(logits_of(5), records(seed=i, mask_row=0), masks=[allowed])[0][0]) for i in range(200)}
    assert drawn == set(allowed)


PENALTIES = {
    "repetition of outputs": ({"repetition": 2.0}, lambda x, p, o: x / 2 if o and x > 0 else x * 2 if o else x),
    "repetition of the prompt too": (
        {"repetition": 2.0, "flags": REPEAT_PROMPT},
        lambda x, p, o: x / 2 if (o or p) and x > 0 else x * 2 if (o or p) else x,
    ),
    "frequency": ({"frequency": 0.5}, lambda x, p, o: x - 0.5 * o),
    "frequency over the prompt": ({"frequency": 0.5, "flags": COUNT_PROMPT}, lambda x, p, o: x - 0.5 * (o + p)),
    "presence": ({"presence": 0.75}, lambda x, p, o: x - 0.75 * (o > 0)),
    "presence over the prompt": ({"presence": 0.75, "flags": COUNT_PROMPT}, lambda x, p, o: x - 0.75 * (o + p > 0)),
    "negative presence": ({"presence": -1.0}, lambda x, p, o: x + (o > 0)),
    "all": (
        {"repetition": 1.5, "frequency": 0.25, "presence": 0.5},
        lambda x, p, o: (x / 1.5 if o and x > 0 else x * 1.5 if o else x) - 0.25 * o - 0.5 * (o > 0),
    ),
}


@pytest.mark.parametrize("penalty", PENALTIES)
def test_penalties(penalty):
    settings_, rule = PENALTIES[penalty]
    x = logits_of(6)[0]
    x[[0, 3, 4, 9, 20]] = [0.5, 0.4, -0.3, 2.0, 0.0]
    history = [(0, 1, 0), (3, 0, 2), (4, 2, 1), (9, 0, 1), (20, 3, 0)]
    count = {t: (p, o) for t, p, o in history}
    expected = [rule(float(v), *count.get(t, (0, 0))) for t, v in enumerate(x)]
    s = records(**{"flags": 0, **settings_})
    s["flags"] |= PROCESSED
    s["n_top"] = MAX_TOP
    ids, logprobs, top_ids, top_logprobs = run(x[None], s, history=history)
    want = np.log(softmax(expected))
    assert np.isclose(logprobs[0], want[ids[0]], atol=1e-5)
    assert np.allclose(top_logprobs[0], want[top_ids[0]], atol=1e-5)


def test_bias_comes_before_penalties_and_the_mask_after():
    """A bias of 4 on a repeated token is halved with its logit; a masked token stays out whatever its bias."""
    x = np.zeros((1, VOCAB), np.float32)
    x[0, 8] = 2.5
    s = records(temperature=0, repetition=2.0, mask_row=0)
    everything = list(range(VOCAB))
    bias, history = [(5, 4.0), (6, 100.0)], [(5, 0, 1)]
    assert run(x, s, bias=bias, history=history, masks=[[t for t in everything if t != 6]])[0][0] == 8


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([-np.inf, -50.0, -1.0, 0.0, 0.5, 0.5, 3.0, 80.0]), min_size=2, max_size=30),
    st.integers(0, 2**64 - 1),
    st.floats(0.01, 5),
    st.integers(0, 40),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.floats(0.01, 1),
)
def test_a_draw_is_always_a_likely_enough_token(row, seed, temperature, top_k, top_p, min_p, typical_p):
    if max(row) == -np.inf:
        row[0] = 0.0
    s = records(seed=seed, top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p, temperature=temperature)
    ids, logprobs, _, _ = ops.sample(np.array([row], np.float32), s, *NOTHING)
    assert 0 <= ids[0] < len(row) and row[ids[0]] > -np.inf and logprobs[0] <= 0
    if top_k == 1:
        assert row[ids[0]] == max(row)
