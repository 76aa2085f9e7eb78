"""Accuracy of a loaded model on a text: perplexity, and against a reference KL divergence and top-1 agreement.

Drives a compiled Step directly, one sequence on pages of its own, so that whole rows of logits can be compared.
Windows do not overlap; the first token of each is given (BOS where the model wants one), every other is predicted from
those before it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ridgeline.backends.base import Step
from ridgeline.engine.single import ROWS, steps, windows
from ridgeline.errors import EngineFailed
from ridgeline.llm import NOT_NUMBERS
from ridgeline.ops.spec import Array
from ridgeline.program.batch import BatchLayout

__all__ = ["ROWS", "Evaluation", "evaluate", "score", "windows"]

Report = Callable[[int], object]  # tokens scored since the last call


@dataclass(frozen=True)
class Evaluation:
    """Sums over `tokens` predicted tokens; the last three only where there was a reference."""

    tokens: int
    nll: float
    reference_nll: float | None = None
    kl_sum: float | None = None
    agreed: int | None = None

    @property
    def perplexity(self) -> float:
        return _exp(self.nll / self.tokens)

    @property
    def reference_perplexity(self) -> float | None:
        return None if self.reference_nll is None else _exp(self.reference_nll / self.tokens)

    @property
    def perplexity_ratio(self) -> float | None:
        """Perplexity over the reference's, 1 being no loss."""
        return None if self.reference_nll is None else _exp((self.nll - self.reference_nll) / self.tokens)

    @property
    def kl(self) -> float | None:
        """Mean KL(reference || model) in nats per token."""
        return None if self.kl_sum is None else self.kl_sum / self.tokens

    @property
    def top1_agreement(self) -> float | None:
        return None if self.agreed is None else self.agreed / self.tokens


def score(step: Step, layout: BatchLayout, ids: Sequence[int]) -> Iterator[Array]:
    """Logits [n, vocab] of consecutive tokens of `ids`, in order; rows may be reused by the next chunk."""
    for result in steps(step, layout, ids):
        assert result.logits is not None, "a step that was asked for logits gave none"
        yield result.logits


def evaluate(
    model: tuple[Step, BatchLayout],
    texts: Sequence[Sequence[int]],
    reference: tuple[Step, BatchLayout] | None = None,
    report: Report = lambda tokens: None,
) -> Evaluation:
    """Score every window, by both models where there is a reference."""
    tokens, agreed = 0, 0
    nll = reference_nll = kl = 0.0
    for ids in texts:
        at = 1
        own = score(*model, ids[:-1])
        other: Iterator[Array | None] = score(*reference, ids[:-1]) if reference else itertools.repeat(None)
        for rows, expected in zip(own, other, strict=False):
            targets = np.asarray(ids[at : at + len(rows)])
            q = log_softmax(rows)
            nll -= float(q[np.arange(len(q)), targets].sum())
            if expected is not None:
                p = log_softmax(expected)
                reference_nll -= float(p[np.arange(len(p)), targets].sum())
                kl += kl_divergence(p, q)
                agreed += int(np.sum(rows.argmax(axis=1) == expected.argmax(axis=1)))
            if np.isnan(nll) or np.isnan(reference_nll):
                raise EngineFailed(NOT_NUMBERS)
            at, tokens = at + len(rows), tokens + len(rows)
            report(len(rows))
    if reference is None:
        return Evaluation(tokens, nll)
    return Evaluation(tokens, nll, reference_nll, kl, agreed)


def log_softmax(logits: Array) -> Array:
    """Log probabilities [n, vocab] in float64."""
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return x


def kl_divergence(p: Array, q: Array) -> float:
    """Sum over rows of KL(p || q) of log probabilities; a token p excludes counts nothing."""
    possible = p > -np.inf
    return float(np.sum(np.exp(p[possible]) * (p[possible] - q[possible])))


def _exp(x: float) -> float:
    """e to the x, infinite where that overflows."""
    return math.exp(x) if x < 700 else math.inf
