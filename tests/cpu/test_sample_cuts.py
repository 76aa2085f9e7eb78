"""Truncations natively: every combination against the oracle, and draws against the distribution they come from."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from harness import ISAS, backend, run_case

from draws import check_draws, expected_distribution
from ridgeline.ops.sample import MAX_TOP, PROCESSED, SAMPLER, sample
from ridgeline.ops.spec import Case

CUTS = [
    dict(zip(("top_k", "top_p", "min_p", "typical_p"), values, strict=True))
    for values in itertools.product((0, 5, 300), (1, 0.6), (0, 0.03), (1, 0.3, 0.95))
]
NOTHING = {
    "bias_ids": np.zeros(0, np.int32), "bias_values": np.zeros(0, np.float32), "history_ids": np.zeros(0, np.int32),
    "history_prompt": np.zeros(0, np.int32), "history_output": np.zeros(0, np.int32),
    "masks": np.zeros((0, 1), np.uint32),
}  # fmt: skip


def case(logits: np.ndarray, settings: list[dict], seed: int, **more: object) -> Case:
    """A row of logits per setting, whose position is its number."""
    s = np.zeros(len(settings), SAMPLER)
    s["target"], s["mask_row"], s["top_p"], s["typical_p"], s["repetition"] = -1, -1, 1, 1, 1
    s["temperature"], s["seed"], s["position"] = 1, seed, np.arange(len(s))
    for i, values in enumerate(settings):
        for name, value in {**values, **more}.items():
            s[name][i] = value
    return Case("", {"logits": logits, "sampler": s, **NOTHING})


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("vocab", [1, 7, 1000, 49152])
def test_combinations(vocab: int, isa: str) -> None:
    """The same tokens survive and the same one is picked. Rounded logits have many ties."""
    for seed, scale, digits in ((0, 3.0, 7), (1, 1.0, 7), (2, 4.0, 1)):
        rng = np.random.default_rng(seed)
        logits = np.round(scale * rng.standard_normal((len(CUTS), vocab), np.float32), digits).astype(np.float32)
        c = case(logits, CUTS, seed, temperature=0.8, flags=PROCESSED, n_top=min(MAX_TOP, vocab))
        got, want = run_case("sample", c, backend(1, isa)), sample(**c.operands)
        assert np.array_equal(got[0], want[0]), [CUTS[i] for i in np.flatnonzero(got[0] != want[0])]
        # One survivor more or less among thousands, where sums round differently, moves logprobs by as little.
        assert np.allclose(got[1], want[1], atol=2e-4, rtol=1e-5)
        assert np.allclose(got[3], want[3], atol=2e-4, rtol=1e-5)


def test_flat_rows() -> None:
    """All logits equal: nothing is more typical than the rest, and top-k and top-p keep the lowest ids."""
    c = case(np.zeros((len(CUTS), 1000), np.float32), CUTS, 3)
    assert np.array_equal(run_case("sample", c, backend())[0], sample(**c.operands)[0])


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("value", [np.inf, 3e38])
def test_huge_logits(value: float, temperature: float) -> None:
    """The first of them is picked whatever is cut, also where temperature takes it beyond float32."""
    logits = np.zeros((len(CUTS), 1000), np.float32)
    logits[:, 21], logits[:, 3] = value, -3e38
    logits[:, 800] = value if value == np.inf else 0
    c = case(logits, CUTS, 3, temperature=temperature)
    with np.errstate(over="ignore"):
        want = sample(**c.operands)[0]
    assert np.array_equal(run_case("sample", c, backend())[0], want) and set(want) == {21}


DRAWS = 5000
RULES = {
    "temperature": {"temperature": 1.6},
    "cold": {"temperature": 0.5},
    "top_k": {"top_k": 9},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "typical_p": {"typical_p": 0.7},
    "k and p": {"top_k": 20, "top_p": 0.9},
    "k and typical": {"top_k": 20, "typical_p": 0.8},
    "p and typical": {"top_p": 0.95, "typical_p": 0.8},
    "all": {"temperature": 1.3, "top_k": 40, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.9},
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rule", RULES)
def test_draws_follow_the_distribution(rule: str, isa: str) -> None:
    """Positions of one request, over a vocabulary with a tail."""
    x = (1.5 * np.random.default_rng(5).standard_normal(100)).astype(np.float32)
    c = case(np.tile(x, (DRAWS, 1)), [RULES[rule]] * DRAWS, 11)
    check_draws(run_case("sample", c, backend(1, isa))[0], expected_distribution(x, **RULES[rule]))


def test_draws_of_a_large_vocabulary() -> None:
    """As many rows as make each of a few hundred typical tokens come up; all others stay out."""
    x = (2 * np.random.default_rng(6).standard_normal(20_000)).astype(np.float32)
    rule = {"temperature": 0.6, "top_k": 2000, "typical_p": 0.3}
    c = case(np.tile(x, (2000, 1)), [rule] * 2000, 12)
    check_draws(run_case("sample", c, backend())[0], expected_distribution(x, **rule))
