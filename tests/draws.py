"""What a sampler should draw, by the textbook, and whether draws follow it (Pearson's chi-square)."""

from __future__ import annotations

import math

import numpy as np


def softmax(x):
    e = np.exp(np.asarray(x, np.float64) - np.max(x))
    return e / e.sum()


def expected_distribution(x, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0):
    """Probabilities by the textbook: temperature, then keep k, then the smallest set reaching p, then min-p, then the
    smallest set reaching typical-p of those whose surprise is nearest to the entropy."""
    p = softmax(np.asarray(x, np.float64) / temperature)
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))
    if top_k:
        order = order[:top_k]
    if top_p < 1:
        total, kept, seen = sum(p[i] for i in order), [], 0.0
        for i in order:
            if seen >= top_p * total:
                break
            kept.append(i)
            seen += p[i]
        order = kept
    order = [i for i in order if p[i] >= min_p * p.max()]
    if typical_p < 1:
        share = {i: p[i] / p[order].sum() for i in order}
        entropy = -sum(v * math.log(v) for v in share.values())
        nearest, seen = sorted(order, key=lambda i: abs(-math.log(share[i]) - entropy)), 0.0
        order = []
        while seen < typical_p:
            order.append(nearest.pop(0))
            seen += share[order[-1]]
    q = np.zeros(len(p))
    q[order] = p[order] / p[order].sum()
    return q


def chi_square_bound(cells):
    """Upper 1e-6 point of chi-square with `cells` - 1 degrees of freedom (Wilson-Hilferty)."""
    k = max(cells - 1, 1)
    return k * (1 - 2 / (9 * k) + 4.76 * math.sqrt(2 / (9 * k))) ** 3


def check_draws(ids, p):
    """Token ids drawn from probabilities p [V]: none that has none, and the others as often as they should be."""
    counts, draws = np.bincount(ids, minlength=len(p)), len(ids)
    assert (p > 0).sum() >= 4, "a rule that leaves next to nothing tests next to nothing"
    assert counts[p == 0].sum() == 0, "a token that should be cut was drawn"
    rare = (p > 0) & (p * draws < 5)  # pooled into one cell, as the test's approximation asks
    often = (p > 0) & ~rare
    seen, want = counts[often].tolist(), (p[often] * draws).tolist()
    if rare.any():
        seen, want = [*seen, counts[rare].sum()], [*want, p[rare].sum() * draws]
    statistic = sum((a - b) ** 2 / b for a, b in zip(seen, want, strict=True))
    assert statistic <= chi_square_bound(len(seen))
