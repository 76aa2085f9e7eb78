"""Sampling beyond its entry's case: every switch against the oracle, on rows with many near ties."""

from __future__ import annotations

import numpy as np
import pytest
from harness import ISAS, backend, run_case

from ridgeline.ops.green import LEFT_HASH, MIN_HASH, SELF_HASH
from ridgeline.ops.sample import COUNT_PROMPT, PROCESSED, REPEAT_PROMPT, SAMPLER, sample
from ridgeline.ops.spec import Case

SETTINGS = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 5.0},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 50},
    {"temperature": 2.0, "top_k": 3000},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 3.0, "top_p": 0.999},
    {"temperature": 1.0, "top_p": 0.01},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.0, "min_p": 0.02, "top_k": 40, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 1.0, "typical_p": 0.9},
    {"temperature": 3.0, "typical_p": 0.2},
    {"temperature": 1.0, "typical_p": 0.5, "flags": PROCESSED, "n_top": 20},
    {"temperature": 1.5, "typical_p": 0.7, "min_p": 0.02, "top_k": 40, "top_p": 0.95},
    {"repetition": 1.3, "frequency": 0.5, "presence": 0.4, "history_stop": 60, "flags": REPEAT_PROMPT},
    {"repetition": 0.8, "frequency": 0.5, "history_start": 10, "history_stop": 60, "flags": COUNT_PROMPT | PROCESSED},
    {"temperature": 1.0, "mask_row": 1, "flags": PROCESSED},
    {"temperature": 1.0, "bias_start": 1, "bias_stop": 6, "n_top": 20},
    {"green_below": 1 << 31, "green_scheme": LEFT_HASH},
    {"green_below": 1 << 30, "green_scheme": MIN_HASH, "temperature": 1.0, "flags": PROCESSED, "top_p": 0.95},
    {"green_below": 1 << 31, "green_scheme": SELF_HASH, "green_top": 40, "flags": PROCESSED, "n_top": 20},
    {
        "green_below": 3 << 30,
        "green_scheme": SELF_HASH,
        "green_top": 40,
        "temperature": 1.0,
        "mask_row": 1,
        "top_k": 60,
    },
    {"green_below": 1 << 31, "green_scheme": LEFT_HASH, "green_top": 7, "temperature": 2.0, "bias_stop": 6},
    {"green_below": 1 << 31, "green_scheme": SELF_HASH, "temperature": 1.0, "history_stop": 60, "presence": 0.4},
    {"green_below": 1 << 31, "green_scheme": MIN_HASH, "green_4": -1, "flags": PROCESSED},
    {"green_below": 1 << 31, "green_scheme": SELF_HASH, "green_top": 1 << 30, "target": 3, "flags": PROCESSED},
    {"target": 17, "n_top": 3},
    {"target": 5, "temperature": 1.0, "flags": PROCESSED, "bias_stop": 3},
]


def rows(vocab: int, scale: float, seed: int) -> Case:
    rng = np.random.default_rng(seed)
    s = np.zeros(len(SETTINGS), SAMPLER)
    s["target"], s["mask_row"], s["top_p"], s["typical_p"], s["repetition"], s["n_top"] = -1, -1, 1, 1, 1, 5
    s["seed"], s["position"], s["choice"] = rng.integers(0, 2**63), np.arange(len(s)), rng.integers(0, 9)
    s["green_key"], s["green_delta"] = rng.integers(0, 2**63), 2
    for i in range(1, 5):
        s[f"green_{i}"] = rng.integers(0, vocab, len(s))
    for i, settings in enumerate(SETTINGS):
        for name, value in settings.items():
            s[name][i] = value
    values = scale * rng.standard_normal((len(s), vocab), dtype=np.float32)
    operands = {
        "logits": np.round(values, 1 if seed % 2 else 7).astype(np.float32),  # odd seeds: many equal logits
        "sampler": s,
        "bias_ids": rng.choice(vocab, 8).astype(np.int32),
        "bias_values": np.array([3, -3, -np.inf, 1, 9, 2, 0, 5], np.float32),
        "history_ids": rng.choice(vocab, 60, replace=False).astype(np.int32),
        "history_prompt": rng.integers(0, 2, 60, np.int32),
        "history_output": rng.integers(0, 3, 60, np.int32),
        "masks": rng.integers(0, 2**32, (2, -(-vocab // 32)), np.uint32),
    }
    return Case("", operands)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("seed", range(6))
def test_settings(seed: int, isa: str) -> None:
    for vocab, scale in ((1003, 3.0), (5000, 1.0), (20000, 8.0)):
        c = rows(vocab, scale, seed)
        got = run_case("sample", c, backend(2, isa))
        want = sample(**c.operands)
        assert np.array_equal(got[0], want[0]), np.flatnonzero(got[0] != want[0])
        assert np.allclose(got[1], want[1], atol=2e-4, rtol=1e-5)
        same = got[2] == want[2]  # alternatives may trade places where rounded scores tie
        assert np.allclose(got[3], want[3], atol=2e-4, rtol=1e-5) and same.mean() > 0.97


FEW = [
    {"green_below": 1 << 31, "green_scheme": SELF_HASH, "green_top": 40, "flags": PROCESSED, "n_top": 20},
    {"green_below": 1 << 31, "green_scheme": SELF_HASH, "green_top": 40, "temperature": 1.0, "mask_row": 0},
    {"green_below": 1 << 31, "green_scheme": LEFT_HASH, "green_top": 1, "temperature": 1.0},
    {"green_below": 1 << 31, "green_scheme": MIN_HASH, "flags": PROCESSED, "n_top": 20},
    {"temperature": 1.0, "top_k": 2, "flags": PROCESSED, "n_top": 20},
    {"temperature": 1.0, "top_k": 40},
    {"temperature": 1.0, "top_p": 0.7, "flags": PROCESSED, "n_top": 20},
    {"temperature": 1.0, "typical_p": 0.6, "flags": PROCESSED, "n_top": 20},
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("vocab", [1, 5, 16, 39, 63, 64, 65, 127, 129, 2559, 2561, 2625, 4097])
def test_rows_of_any_length(vocab: int, isa: str) -> None:
    """The likeliest are found where stretches of a row are fewer than they, as many, and more; ties take lower ids."""
    for seed, few in ((0, 1.0), (1, 1.0), (2, 0.01)):
        rng = np.random.default_rng(seed)
        s = np.zeros(len(FEW), SAMPLER)
        s["target"], s["mask_row"], s["top_p"], s["typical_p"], s["repetition"] = -1, -1, 1, 1, 1
        s["seed"], s["green_key"], s["green_delta"] = seed, 77, 2
        for i in range(1, 5):
            s[f"green_{i}"] = rng.integers(0, vocab, len(s))
        for i, settings in enumerate(FEW):
            for name, value in settings.items():
                s[name][i] = value
        allowed = rng.random(-(-vocab // 32) * 32) < few
        allowed[rng.integers(vocab)] = True
        logits = np.round(3 * rng.standard_normal((len(s), vocab)), seed % 2 * 6)  # even seeds: many equal ones
        c = Case("", {
            "logits": logits.astype(np.float32), "sampler": s,
            "bias_ids": np.zeros(0, np.int32), "bias_values": np.zeros(0, np.float32),
            "history_ids": np.zeros(0, np.int32), "history_prompt": np.zeros(0, np.int32),
            "history_output": np.zeros(0, np.int32),
            "masks": np.packbits(allowed, bitorder="little").view(np.uint32)[None],
        })  # fmt: skip
        got, want = run_case("sample", c, backend(1, isa)), sample(**c.operands)
        assert np.array_equal(got[0], want[0]), np.flatnonzero(got[0] != want[0])
        assert np.allclose(got[3], want[3], atol=2e-4, rtol=1e-5)


def test_everything_masked() -> None:
    """No token may be sampled: -1. Given tokens stay what they are."""
    c = rows(64, 1.0, 0)
    c.operands["masks"][:] = 0
    c.operands["sampler"]["mask_row"] = 0
    ids, logprobs, *_ = run_case("sample", c, backend())
    given = c.operands["sampler"]["target"]
    assert np.array_equal(ids, given)
    assert (logprobs[given < 0] == -np.inf).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("at", [0, 17, 1002, slice(None)])
def test_logits_that_are_no_numbers(at: int | slice, isa: str) -> None:
    """One NaN spoils a row: no token, unless one is given, and no logprob; the oracle says the same."""
    c = rows(1003, 3.0, 0)
    c.operands["masks"][:, -1] |= 0xFFFFFFFF
    c.operands["masks"][:, 0] |= 0xFFFFFFFF
    c.operands["logits"][:, at] = np.nan
    ids, logprobs, top_ids, top_logprobs = run_case("sample", c, backend(1, isa))
    assert np.array_equal(ids, c.operands["sampler"]["target"])
    assert (logprobs == -np.inf).all() and (top_ids == -1).all() and (top_logprobs == -np.inf).all()
    want = sample(**c.operands)
    assert np.array_equal(ids, want[0]) and np.array_equal(logprobs, want[1])


def test_an_infinite_logit_is_picked() -> None:
    """It is the largest, but leaves no logprobs to tell."""
    c = rows(64, 1.0, 0)
    c.operands["logits"][0, 9] = np.inf
    ids, logprobs, *_ = run_case("sample", c, backend())
    want = sample(**c.operands)
    assert ids[0] == want[0][0] == 9 and logprobs[0] == want[1][0] == -np.inf
