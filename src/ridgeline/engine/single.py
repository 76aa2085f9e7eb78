"""Drive a compiled Step by hand with one sequence, on the first pages of its pool: evaluation and calibration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ridgeline.backends.base import Step
from ridgeline.errors import InvalidRequest
from ridgeline.ops.attention import PAGE
from ridgeline.program.batch import WANT_LOGITS, Batch, BatchLayout, StepResult

ROWS = 64  # most rows of one step


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


def steps(step: Step, layout: BatchLayout, ids: Sequence[int], want: int = WANT_LOGITS) -> Iterator[StepResult]:
    """Results of consecutive chunks of `ids`, each token a row that wants `want`; arrays may be reused by the next.

    Nothing else may run on `step` meanwhile.
    """
    limits = layout.limits
    size = min(ROWS, limits.rows, limits.tokens)
    assert len(ids) <= limits.pages * PAGE, f"{len(ids)} tokens do not fit {limits.pages} pages"
    batch = Batch(layout)
    for start in range(0, len(ids), size):
        fill(batch, ids[start : start + size], start, want)
        yield step.run(batch)


def fill(batch: Batch, ids: Sequence[int], start: int, want: int = WANT_LOGITS) -> None:
    """Write one chunk of the only sequence, at positions from `start`; every row wants `want`."""
    n = len(ids)
    positions = np.arange(start, start + n, dtype=np.int32)
    batch.resize(step=batch.size("step") + 1, T=n, R=1, L=n if want else 0)
    batch["ids"][:] = ids
    batch["positions"][:] = positions
    batch["kv_len"][:] = positions + 1
    batch["request"][:] = 0
    pages = batch.layout.limits.pages
    for g, group in enumerate(batch.layout.groups):
        table = np.arange(g * pages, (g + 1) * pages, dtype=np.int32)
        batch[f"page_table.{group}"][0] = table
        batch[f"kv_slot.{group}"][:] = table[positions // PAGE] * PAGE + positions % PAGE
    if want:
        batch["out_rows"][:] = np.arange(n)
        batch["want"][:] = want
        sampler = batch["sampler"]
        sampler["top_p"], sampler["typical_p"], sampler["repetition"], sampler["mask_row"] = 1, 1, 1, -1
        sampler["target"] = ids  # any given token: it spares the pick
