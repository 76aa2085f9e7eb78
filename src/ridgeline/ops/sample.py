"""sample: a pure function of (logits, sampler record, noise), in one fixed order.

Order: bias and bad words -> penalties -> grammar mask -> watermark -> temperature -> top-k -> top-p -> min-p ->
typical-p -> pick. The watermark (ops/green.py) adds to the logits of green tokens: what is masked stays out, greedy
picks are marked too, and processed logprobs have it.
Noise is a counter hash of (seed, choice, position, purpose, token id), so a pick depends on nothing but its own
request: not on the batch, not on the step, not on a restart.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ridgeline.ops.green import MOST, WIDTH, colours, seeds
from ridgeline.ops.noise import GOLDEN, mix, mix_with
from ridgeline.ops.spec import Array, Call, Case, Cost, Load, TensorType, op

MAX_TOP = 20  # most alternatives a row may ask for (OpenAI's limit)

REPEAT_PROMPT = 1  # repetition penalty also counts prompt tokens
COUNT_PROMPT = 2  # frequency and presence penalties also count prompt tokens
PROCESSED = 4  # logprobs of the processed distribution instead of the model's own

PURPOSE_PICK = 1

SAMPLER = np.dtype(
    [
        ("seed", "u8"),
        ("temperature", "f4"),  # 0 = greedy
        ("top_p", "f4"),  # 1 = off
        ("min_p", "f4"),  # 0 = off
        ("repetition", "f4"),  # 1 = off
        ("frequency", "f4"),  # 0 = off
        ("presence", "f4"),  # 0 = off
        ("top_k", "i4"),  # 0 = off
        ("n_top", "i4"),  # alternatives wanted, 0..MAX_TOP
        ("choice", "i4"),  # index within n
        ("position", "i4"),  # of the token being picked
        ("target", "i4"),  # >= 0: take this token and report its logprob; -1: sample
        ("flags", "u4"),
        ("mask_row", "i4"),  # row of masks[], -1 = none
        ("bias_start", "i4"),
        ("bias_stop", "i4"),
        ("history_start", "i4"),
        ("history_stop", "i4"),
        ("typical_p", "f4"),  # 1 = off
        ("green_key", "u8"),
        ("green_below", "u4"),  # gamma * 2^32; 0 = no watermark
        ("green_delta", "f4"),  # what green logits gain
        ("green_scheme", "i4"),
        ("green_top", "i4"),  # only so many of the likeliest tokens are looked at; 0 = all
        *((f"green_{i}", "i4") for i in range(1, MOST + 1)),  # the tokens before, the last first; -1 = there is none
    ]
)
assert SAMPLER.itemsize == 120


def noise_key(seed: int, choice: int, position: int, purpose: int) -> int:
    """64-bit key of one draw; per-token noise is `exponential(key, ids)`."""
    key = mix(seed + GOLDEN)
    for part in (choice, position, purpose):
        key = mix(key + (part + 1) * GOLDEN)
    return key


def exponential(key: int, ids: Array) -> Array:
    """Unit exponential noise, float64, one per token id: -log(1 - u), u from the top 32 bits of the hash."""
    u = ((mix_with(key, ids) >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**-32
    noise: Array = -np.log1p(-u)
    return noise


def _log_softmax(x: Array) -> Array:
    with np.errstate(invalid="ignore"):  # rows in which nothing is left: NaN, which no caller reads
        below = x - x.max()
        y: Array = (below - np.log(np.sum(np.exp(below.astype(np.float64))))).astype(np.float32)
    return y


def _penalise(x: Array, s: Array, ids: Array, in_prompt: Array, in_output: Array) -> None:
    flags = int(s["flags"])
    repeated = ids[(in_output > 0) | ((in_prompt > 0) & bool(flags & REPEAT_PROMPT))]
    x[repeated] = np.where(x[repeated] > 0, x[repeated] / s["repetition"], x[repeated] * s["repetition"])
    counts = in_output + (in_prompt if flags & COUNT_PROMPT else 0)
    x[ids] -= s["frequency"] * counts.astype(np.float32) + s["presence"] * (counts > 0).astype(np.float32)


def _mark(x: Array, s: Array) -> None:
    """The watermark: green logits gain `green_delta`. None are, where tokens that colours hang on are missing."""
    scheme = int(s["green_scheme"])
    past = np.array([[s[f"green_{i}"] for i in range(1, WIDTH[scheme] + 1)]])
    if past.min() < 0:
        return
    likely = np.argsort(-x, kind="stable")[: int(s["green_top"])] if s["green_top"] > 0 else np.arange(len(x))
    ids = likely.astype(np.int32)
    x[ids[colours(seeds(scheme, int(s["green_key"]), past, ids), ids) < s["green_below"]]] += s["green_delta"]


def _truncate(x: Array, top_k: int, top_p: float, min_p: float, typical_p: float) -> Array:
    """Ids that survive top-k, then top-p, then min-p, then typical-p, of scaled logits x [V].

    Ties keep the lower id; of equally typical tokens typical-p keeps all. An infinite logit leaves nothing to compare.
    """
    ids = np.flatnonzero(x > -np.inf)
    if x.max() == np.inf:
        return ids
    if (0 < top_k < len(ids)) or top_p < 1:
        ids = ids[np.argsort(-x[ids], kind="stable")]
        if top_k > 0:
            ids = ids[:top_k]
    p = np.exp((x[ids] - x[ids].max()).astype(np.float64))
    if top_p < 1:
        before = np.cumsum(p) - p
        kept = before < top_p * p.sum()
        ids, p = ids[kept], p[kept]
    if min_p > 0:
        ids = ids[p >= min_p * p.max()]
    return _typical(x, np.sort(ids), typical_p) if typical_p < 1 else ids


def _typical(x: Array, ids: Array, least: float) -> Array:
    """Those of `ids` whose surprise is nearest to the entropy: the fewest of at least `least` of the probability
    (locally typical sampling, Meister et al. 2022). Surprise minus entropy is expected logit minus logit.
    """
    below = (x[ids] - x[ids].max()).astype(np.float64)
    p = np.exp(below)
    away = np.abs(below - np.sum(p * np.maximum(below, -1000)) / p.sum())  # of no weight from there, but finite
    order = np.argsort(away, kind="stable")
    short = int(np.sum(np.cumsum(p[order]) < least * p.sum()))
    typical: Array = ids[away <= away[order[min(short, len(ids) - 1)]]]
    return typical


def _cases(rng: np.random.Generator) -> Iterable[Case]:
    rows, vocab = 11, 1000
    s = np.zeros(rows, SAMPLER)
    s["target"], s["mask_row"], s["top_p"], s["typical_p"], s["repetition"] = -1, -1, 1, 1, 1
    s["seed"], s["position"], s["n_top"] = 1234567890123456789, np.arange(rows), 5
    s["temperature"] = [0, 1, 0.7, 1.3, 1, 0, 1, 1, 0, 1, 1]
    s["top_k"][2], s["top_p"][3], s["min_p"][4] = 40, 0.8, 0.1
    s["repetition"][5], s["frequency"][5], s["presence"][5] = 1.5, 0.3, 0.2
    s["history_stop"][5], s["flags"][5] = 3, REPEAT_PROMPT | PROCESSED
    s["bias_stop"][6], s["mask_row"][6], s["choice"][6] = 2, 0, 3
    s["typical_p"][7] = 0.6
    s["green_below"][8:], s["green_delta"], s["green_key"], s["green_scheme"][8:] = 1 << 31, 2, 15485863, [0, 1, 2]
    s["green_top"][10], s["flags"][10] = 40, PROCESSED
    for i in range(1, MOST + 1):
        s[f"green_{i}"] = 31 * i
    yield Case(
        "mixed",
        {
            "logits": 3 * rng.standard_normal((rows, vocab), dtype=np.float32),
            "sampler": s,
            "bias_ids": np.array([5, 9], np.int32),
            "bias_values": np.array([10, -np.inf], np.float32),
            "history_ids": np.array([1, 2, 3], np.int32),
            "history_prompt": np.array([1, 0, 2], np.int32),
            "history_output": np.array([0, 4, 1], np.int32),
            "masks": rng.integers(0, 2**32, (1, -(-vocab // 32)), np.uint32),
        },
    )


def _shape(logits: TensorType, *_: TensorType) -> tuple[TensorType, ...]:
    rows = logits.shape[0]
    return (
        TensorType((rows,), "i32"),
        TensorType((rows,)),
        TensorType((rows, MAX_TOP), "i32"),
        TensorType((rows, MAX_TOP)),
    )


def _cost(call: Call, load: Load) -> Cost:
    logits = call.ins["logits"]
    count = float(load.size(logits.shape[0]) * logits.columns)
    return Cost(4 * count, 0.0, 0.0, 4 * count)


@op(
    "logits:act sampler:field bias_ids:field bias_values:field history_ids:field history_prompt:field "
    "history_output:field masks:field",
    shape=_shape,
    cost=_cost,
    cases=_cases,
    tolerance=1e-4,
)
def sample(
    logits: Array, sampler: Array, bias_ids: Array, bias_values: Array, history_ids: Array, history_prompt: Array,
    history_output: Array, masks: Array,
) -> tuple[Array, Array, Array, Array]:  # fmt: skip
    """Token ids [L], their logprobs [L], and the n_top likeliest ids and logprobs [L, MAX_TOP] (-1 padded).

    Where `target` >= 0 that token is taken and its logprob reported. A sampled token is the argmax of scaled logit
    minus log(exponential noise) (Gumbel-max), which needs no sum over the vocabulary. Where nothing may be sampled
    (all masked, or logits that are not numbers) the id is -1 and the logprob -inf.
    """
    rows = len(logits)
    ids, logprobs = np.empty(rows, np.int32), np.empty(rows, np.float32)
    top_ids, top_logprobs = np.full((rows, MAX_TOP), -1, np.int32), np.full((rows, MAX_TOP), -np.inf, np.float32)
    for i, s in enumerate(sampler[:rows]):
        x = logits[i].astype(np.float32, copy=True)
        bias = slice(int(s["bias_start"]), int(s["bias_stop"]))
        np.add.at(x, bias_ids[bias], bias_values[bias])
        past = slice(int(s["history_start"]), int(s["history_stop"]))
        if past.stop > past.start:
            _penalise(x, s, history_ids[past], history_prompt[past], history_output[past])
        if s["mask_row"] >= 0:
            bits = np.unpackbits(masks[s["mask_row"]].view(np.uint8), bitorder="little")[: len(x)]
            x[bits == 0] = -np.inf
        if s["green_below"]:
            _mark(x, s)
        ids[i] = _pick(x, s) if s["target"] < 0 else s["target"]
        scores = _log_softmax(x if s["flags"] & PROCESSED else logits[i])
        logprobs[i] = scores[ids[i]] if ids[i] >= 0 and not np.isnan(scores[ids[i]]) else -np.inf
        n = min(int(s["n_top"]), len(x))
        if n and not np.isnan(scores).any():
            best = np.argsort(-scores, kind="stable")[:n]
            top_ids[i, :n], top_logprobs[i, :n] = best, scores[best]
    return ids, logprobs, top_ids, top_logprobs


def _pick(x: Array, s: Array) -> int:
    """One token id from processed logits x [V]; scales x in place, so that processed logprobs see it."""
    if np.isnan(x).any() or not np.any(x > -np.inf):
        return -1
    if s["temperature"] <= 0:
        return int(np.argmax(x))
    x /= s["temperature"]
    kept = _truncate(x, int(s["top_k"]), float(s["top_p"]), float(s["min_p"]), float(s["typical_p"]))
    dropped = np.ones(len(x), bool)
    dropped[kept] = False
    x[dropped] = -np.inf
    key = noise_key(int(s["seed"]), int(s["choice"]), int(s["position"]), PURPOSE_PICK)
    kept = np.sort(kept)
    return int(kept[np.argmax(x[kept].astype(np.float64) - np.log(exponential(key, kept)))])
