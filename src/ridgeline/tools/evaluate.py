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
from ridgeline.errors import EngineFailed, InvalidRequest
from ridgeline.llm import NOT_NUMBERS
from ridgeline.ops.attention import PAGE
from ridgeline.ops.spec import Array
from ridgeline.program.batch import WANT_LOGITS, Batch, BatchLayout

ROWS = 64  # rows of logits held at once

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


def windows(ids: Sequence[int], window: int, tokens: int, bos: int | None = None) -> list[Sequence[int]]:
    """The first `tokens` ids cut into windows of `window` tokens, each with `bos` in front if there is one.

    `ids` are the text's own. A last window that predicts nothing is left out.
    """
    if window < 2:
        raise InvalidRequest(f"the window must be at least 2 tokens, is {window}", "window")
    kept, start = ids[:tokens], [] if bos is None else [bos]
    size = window - len(start)
    cut: list[Sequence[int]] = [[*start, *kept[i : i + size]] for i in range(0, len(kept), size)]
    found = [w for w in cut if len(w) > 1]
    if not found:
        used = f"the text has {len(ids)} tokens of which {tokens} are used"
        raise InvalidRequest(f"{used}; give at least {2 - len(start)}", "text")
    return found


def score(step: Step, layout: BatchLayout, ids: Sequence[int]) -> Iterator[Array]:
    """Logits [n, vocab] of consecutive tokens of `ids`, in order; rows may be reused by the next chunk.

    Uses the first pages of the pool; nothing else may run on `step` meanwhile.
    """
    limits = layout.limits
    size = min(ROWS, limits.rows, limits.tokens)
    assert len(ids) <= limits.pages * PAGE, f"{len(ids)} tokens do not fit {limits.pages} pages"
    batch = Batch(layout)
    for start in range(0, len(ids), size):
        fill(batch, ids[start : start + size], start)
        logits = step.run(batch).logits
        assert logits is not None, "a step that was asked for logits gave none"
        yield logits


def fill(batch: Batch, ids: Sequence[int], start: int) -> None:
    """Write one chunk of the only sequence, at positions from `start`; every row wants its logits."""
    n = len(ids)
    positions = np.arange(start, start + n, dtype=np.int32)
    batch.resize(step=batch.size("step") + 1, T=n, R=1, L=n)
    batch["ids"][:] = ids
    batch["positions"][:] = positions
    batch["kv_len"][:] = positions + 1
    batch["request"][:] = 0
    pages = batch.layout.limits.pages
    for g, group in enumerate(batch.layout.groups):
        table = np.arange(g * pages, (g + 1) * pages, dtype=np.int32)
        batch[f"page_table.{group}"][0] = table
        batch[f"kv_slot.{group}"][:] = table[positions // PAGE] * PAGE + positions % PAGE
    batch["out_rows"][:] = np.arange(n)
    batch["want"][:] = WANT_LOGITS
    sampler = batch["sampler"]
    sampler["top_p"], sampler["repetition"], sampler["mask_row"] = 1, 1, -1
    sampler["target"] = ids  # any given token: it spares the pick


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
