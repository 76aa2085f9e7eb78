"""Detection: whether token ids carry a watermark, by counting green tokens.

A colour hangs on (seed, token) alone, so each such pair counts once however often it occurs: what is left are
independent draws with probability gamma, if nobody marked the text. Then the number of green ones is binomial, and `p`
is its exact upper tail; `z` is the distance from the mean in standard deviations. Where several watermarks are tried,
the least p counts, times their number (Bonferroni). The first tokens, whose past is not there, are not scored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from ridgeline.engine.watermark import Watermark
from ridgeline.ops.green import WIDTH, colours, seeds
from ridgeline.ops.noise import mix_with
from ridgeline.ops.spec import Array

MARKED = 3.17e-5  # a corrected p below is called marked: the tail of a normal distribution beyond z = 4


class Finding(msgspec.Struct, frozen=True):
    """What a text says of a watermark; `scheme` is that of the least p."""

    z: float
    p: float
    p_corrected: float
    scheme: str
    tokens_scored: int
    green: int
    marked: bool


def detect(tokens: Sequence[int], tried: Sequence[Watermark]) -> Finding:
    """The watermark of `tried` that `tokens` are likeliest to carry."""
    found = []
    for w in tried:
        green = _greens(np.asarray(tokens, np.int64), w)
        found.append((_tail(len(green), int(green.sum()), w.gamma), w, len(green), int(green.sum())))
    p, w, scored, count = min(found, key=lambda x: x[0])
    corrected = min(1.0, p * len(tried))
    z = (count - w.gamma * scored) / math.sqrt(w.gamma * (1 - w.gamma) * scored) if scored else 0.0
    return Finding(z, p, corrected, w.scheme, scored, count, corrected < MARKED)


def _greens(tokens: Array, w: Watermark) -> Array:
    """Whether green, of each distinct (seed, token)."""
    width = WIDTH[w.number]
    if len(tokens) <= width:
        return np.zeros(0, bool)
    past = np.lib.stride_tricks.sliding_window_view(tokens[:-1], width)[:, ::-1]
    ids = tokens[width:]
    seed = seeds(w.number, w.key, past, ids)
    _, first = np.unique(mix_with(seed, ids), return_index=True)
    green: Array = colours(seed[first], ids[first]) < w.below
    return green


def _tail(n: int, least: int, gamma: float) -> float:
    """The probability of at least `least` of n draws with probability gamma; 0 below what floats can say."""
    if least == 0:
        return 1.0
    first = math.lgamma(n + 1) - math.lgamma(least + 1) - math.lgamma(n - least + 1)
    first += least * math.log(gamma) + (n - least) * math.log1p(-gamma)
    k = np.arange(least, n)
    ratios = np.log((n - k) / (k + 1)) + math.log(gamma / (1 - gamma))
    terms = first + np.concatenate([[0.0], np.cumsum(ratios)])  # logarithms
    most = float(terms.max())  # of which the first may be far below all numbers, where few are green
    return min(1.0, math.exp(most) * float(np.exp(terms - most).sum()))
