"""The watermark: what is green, where it comes in the sampler's order, and what detection says of ids."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline import ops
from ridgeline.config import WATERMARKS
from ridgeline.engine.detection import MARKED, detect
from ridgeline.engine.params import SamplingParams, check_params
from ridgeline.engine.watermark import PUBLIC_KEY, Watermark
from ridgeline.errors import InvalidRequest
from ridgeline.ops.green import LEFT_HASH, MIN_HASH, SELF_HASH, WIDTH, colours, seeds
from ridgeline.ops.sample import PROCESSED, SAMPLER

VOCAB = 500
HALF = 1 << 31
SCHEMES = [LEFT_HASH, MIN_HASH, SELF_HASH]
M64, M32 = (1 << 64) - 1, (1 << 32) - 1


def mixed(x):
    x &= M64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & M64
    x = (x ^ x >> 27) * 0x94D049BB133111EB & M64
    return x ^ x >> 31


def plain_colour(scheme, key, past, token):
    """The definition once more, token by token, in Python's own numbers."""
    golden = 0x9E3779B97F4A7C15
    own = mixed(mixed(key + golden) + (scheme + 1) * golden)
    hashes = [mixed(own + (x + 1) * golden) for x in past]
    if scheme == SELF_HASH:
        hashes.append(mixed(own + (token + 1) * golden))
        hashes = [mixed(h + (token + 1) * golden) for h in hashes]
    seed = min(hashes)
    x = ((token + 1) * 0x9E3779B9 & M32) ^ seed & M32
    x = (x ^ x >> 16) * 0x7FEB352D & M32
    x = ((x ^ x >> 15) + (seed >> 32)) * 0x846CA68B & M32
    return x ^ x >> 16


def green(scheme, past, ids, below=HALF, key=PUBLIC_KEY):
    ids = np.asarray(ids)
    return colours(seeds(scheme, key, np.array([past[: WIDTH[scheme]]]), ids), ids) < below


@pytest.mark.parametrize("scheme", SCHEMES)
def test_colours_are_those_of_the_definition(scheme):
    rng = np.random.default_rng(scheme)
    for key in (0, PUBLIC_KEY, M64):
        past, ids = rng.integers(0, 300_000, WIDTH[scheme]), rng.integers(0, 300_000, 40)
        found = colours(seeds(scheme, key, past[None], ids), ids)
        assert found.tolist() == [plain_colour(scheme, key, past.tolist(), i) for i in ids.tolist()]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_lists_are_of_gamma_and_independent(scheme):
    ids = np.arange(20_000)
    pasts = [[i, 100 + i, 200 + i, 300 + i] for i in range(40)]
    lists = np.array([green(scheme, past, ids, HALF // 2) for past in pasts])
    assert abs(lists.mean() - 0.25) < 0.005
    if scheme != SELF_HASH:  # there a token's colour behind any past is its own in one of four cases
        assert np.abs(np.corrcoef(lists) - np.eye(40)).max() < 0.05
    others = np.array([green(scheme, past, ids, HALF // 2, 5) for past in pasts])
    assert abs(np.corrcoef(lists.ravel(), others.ravel())[0, 1]) < 0.01


def record(scheme, past=(5, 6, 7, 8), **values):
    s = np.zeros(1, SAMPLER)
    s["target"], s["mask_row"], s["top_p"], s["typical_p"], s["repetition"] = -1, -1, 1, 1, 1
    s["green_key"], s["green_below"], s["green_delta"], s["green_scheme"] = PUBLIC_KEY, HALF, 2, scheme
    for i, token in enumerate(past, 1):
        s[f"green_{i}"] = token
    for name, value in values.items():
        s[name] = value
    return s


def run(x, s, masks=()):
    none = [np.zeros(0, np.int32)] * 5
    packed = np.array([*masks], np.uint32).reshape(len(masks), -(-VOCAB // 32))
    return ops.sample(np.asarray(x, np.float32)[None], s, *none, packed)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_greedy_takes_the_likeliest_when_green_ones_have_gained(scheme):
    for seed in range(20):
        x = np.random.default_rng(seed).standard_normal(VOCAB).astype(np.float32)
        want = x + 2 * green(scheme, (5, 6, 7, 8), np.arange(VOCAB)).astype(np.float32)
        ids, logprobs, *_ = run(x, record(scheme))
        assert ids[0] == np.argmax(want)
        assert np.isclose(logprobs[0], x[ids[0]] - np.log(np.exp(x).sum()), atol=1e-4), "the model's own"
        given = run(x, record(scheme, target=9, flags=PROCESSED))
        assert given[0][0] == 9 and np.isclose(given[1][0], want[9] - np.log(np.exp(want).sum()), atol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("temperature", [0, 1])
def test_a_masked_token_stays_out(scheme, temperature):
    allowed = int(np.flatnonzero(~green(scheme, (5, 6, 7, 8), np.arange(VOCAB)))[3])
    mask = np.zeros(-(-VOCAB // 32), np.uint32)
    mask[allowed // 32] = 1 << allowed % 32
    s = record(scheme, temperature=temperature, mask_row=0, green_delta=100, green_top=40 * (scheme == SELF_HASH))
    assert run(np.zeros(VOCAB), s, [mask])[0][0] == allowed


@pytest.mark.parametrize("scheme", SCHEMES)
def test_only_the_likeliest_are_looked_at(scheme):
    x = np.zeros(VOCAB, np.float32)
    x[[30, 31, 32, 33]] = 1
    x[30] = 1.1
    colour = green(scheme, (5, 6, 7, 8), np.arange(VOCAB))
    among = [i for i in (30, 31, 32, 33) if colour[i]]
    want = (30 if colour[30] else among[0]) if among else 30
    assert run(x, record(scheme, green_top=4, green_delta=50))[0][0] == want
    assert colour[run(x, record(scheme, green_delta=50))[0][0]]


def test_no_colour_without_the_tokens_it_hangs_on():
    x = np.random.default_rng(0).standard_normal(VOCAB).astype(np.float32)
    plain = np.argmax(x)
    for scheme in SCHEMES:
        past = [5] * (WIDTH[scheme] - 1) + [-1] * 4
        assert run(x, record(scheme, past[:4], green_delta=100))[0][0] == plain
        enough = [5] * WIDTH[scheme] + [-1] * 4
        assert run(x, record(scheme, enough[:4], green_delta=100))[0][0] != plain or green(scheme, [5] * 4, [plain])[0]


def marked_ids(w, count, rng):
    """Ids drawn from a flat distribution with the watermark."""
    tokens = rng.integers(0, VOCAB, 4).tolist()
    for _ in range(count):
        past = tokens[:-5:-1]
        x = w.delta * green(w.number, past, np.arange(VOCAB), w.below, w.key) + rng.gumbel(size=VOCAB)
        tokens.append(int(np.argmax(x)))
    return tokens[4:]


@pytest.mark.parametrize("scheme", WATERMARKS)
def test_marked_ids_are_found_and_by_no_other_key_or_scheme(scheme):
    rng = np.random.default_rng(WATERMARKS.index(scheme))
    w = Watermark(scheme, 0.25, 2.0, 77)
    tried = [Watermark(name, 0.25, 2.0, 77) for name in WATERMARKS]
    for _ in range(5):
        ids = marked_ids(w, 200, rng)
        found = detect(ids, tried)
        assert found.marked and found.scheme == scheme and found.z > 4 and found.p_corrected == 3 * found.p
        assert found.tokens_scored > 170 and found.green > 0.4 * found.tokens_scored
        assert not detect(ids, [Watermark(scheme, 0.25, 2.0, 78)]).marked
        assert not detect(ids, [x for x in tried if x.scheme != scheme]).marked
        assert not detect(ids[::-1], tried).marked


@pytest.mark.parametrize("scheme", WATERMARKS)
def test_repetition_makes_no_evidence(scheme):
    """A text of one phrase over and over is scored as its few distinct pairs."""
    w = Watermark(scheme)
    ids = marked_ids(w, 6, np.random.default_rng(1)) * 100
    found = detect(ids, [w])
    assert found.tokens_scored <= 6 and not found.marked


@pytest.mark.parametrize("scheme", WATERMARKS)
def test_plain_ids_have_p_values_spread_as_chance_spreads_them(scheme):
    """Ids with few values, so that pairs repeat: were they counted twice, small p would come too often."""
    rng = np.random.default_rng(3)
    ps = np.array([detect((rng.zipf(1.5, 200) % 40).tolist(), [Watermark(scheme, key=k)]).p for k in range(600)])
    for level in (0.5, 0.2, 0.05, 0.01):
        assert (ps <= level).mean() <= level + 3.5 * math.sqrt(level * (1 - level) / len(ps))
    assert (ps <= 0.5).mean() > 0.3


def test_prose_is_not_marked():
    """Real text, byte by byte, which repeats itself much: of a thousand pieces none, whatever the key."""
    text = np.frombuffer((Path(__file__).parents[1] / "data" / "prose.txt").read_bytes(), np.uint8)
    ps = []
    for k in range(1000):
        at = 37 * k % (len(text) - 400)
        ps.append(detect(text[at : at + 400].tolist(), [Watermark(scheme, key=k) for scheme in WATERMARKS]).p_corrected)
    assert min(ps) > MARKED and np.mean(np.array(ps) < 0.05) < 0.08


def test_a_long_text_with_few_green_tokens_is_as_likely_as_can_be():
    """The chance of exactly as few is below all floats; that of at least as many is 1."""
    w, rng, ids = Watermark(key=5), np.random.default_rng(0), [1]
    for i in range(3000):
        these = rng.integers(0, VOCAB, 40)
        wanted = these[green(LEFT_HASH, ids[-1:], these, w.below, 5) == (i % 20 == 0)]
        ids.append(int(wanted[0]))
    with np.errstate(over="raise", invalid="raise"):
        found = detect(ids, [w])
    assert found.p == 1 and found.z < -40 and not found.marked


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 8), max_size=60), st.sampled_from(WATERMARKS), st.floats(0.05, 0.95))
def test_numbers_of_a_finding(ids, scheme, gamma):
    w = Watermark(scheme, gamma, key=9)
    found, width = detect(ids, [w]), WIDTH[w.number]
    pairs = {}
    for i in range(width, len(ids)):
        past, token = ids[i - width : i], ids[i]
        pairs[tuple(past), token] = green(w.number, past[::-1], [token], w.below, 9)[0]
    assert found.tokens_scored <= len(pairs) and found.green <= sum(pairs.values())
    if scheme == "lefthash":
        assert (found.tokens_scored, found.green) == (len(pairs), sum(pairs.values()))
    n, k = found.tokens_scored, found.green
    exact = sum(math.comb(n, i) * gamma**i * (1 - gamma) ** (n - i) for i in range(k, n + 1))
    assert found.p == pytest.approx(exact, rel=1e-9) and found.p_corrected == found.p
    assert found.z == pytest.approx((k - gamma * n) / math.sqrt(n * gamma * (1 - gamma)) if n else 0)
    assert found.marked == (found.p < MARKED)


@pytest.mark.parametrize(
    "given_", [{"scheme": "x"}, {"gamma": 0.0}, {"gamma": 1.0}, {"delta": 0.0}, {"delta": 101.0}, {"key": 1 << 64}]
)
def test_what_a_request_may_not_ask(given_):
    with pytest.raises(InvalidRequest) as refused:
        check_params(SamplingParams(watermark=Watermark(**given_)), VOCAB)
    assert refused.value.param == "watermark"


def test_beams_refuse_a_watermark():
    with pytest.raises(InvalidRequest, match="watermark does not go with beam search"):
        check_params(SamplingParams(beams=2, temperature=0, watermark=Watermark()), VOCAB)
