"""Steps of a tiny Llama driven by hand-made batches, for spine probes and invariants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ridgeline.backends.reference import ReferenceStep
from ridgeline.models.config import ModelConfig, Rope
from ridgeline.ops.attention import PAGE
from ridgeline.program.batch import WANT_IDS, WANT_LOGITS, Batch, BatchLayout, Limits
from ridgeline.program.ir import Program, Weight

TINY = ModelConfig("llama", 131, 72, 2, 9, 3, 8, 40, 1e-5, Rope(1e4, 8), 512, tied=True)
PAGES = 12


def arrays_of(program: Program, seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded float32 weights by name, constants included."""
    return {w.name: _array(w, seed) for w in program.weights.values()}


def _array(w: Weight, seed: int) -> np.ndarray:
    if w.constant is not None:
        return np.array(w.constant, np.float32)
    rng = np.random.default_rng([seed, *w.name.encode()])
    return (rng.standard_normal(w.shape) * 0.15 + (len(w.shape) == 1)).astype(np.float32)


def limits(**more: int) -> Limits:
    return Limits(**{"tokens": 64, "requests": 4, "rows": 64, "pages": 4, "vocab": 131, "hidden": 72, **more})


def make_step(program: Program, lim: Limits | None = None, seed: int = 0, **more) -> ReferenceStep:
    """A reference step whose pages are full of NaN."""
    layout = BatchLayout.of(lim or limits(), program.states)
    step = ReferenceStep(program, arrays_of(program, seed), layout, PAGES, **more)
    for store in step.states.values():
        if hasattr(store, "poison"):
            store.poison()
    return step


def new_batch(
    layout: BatchLayout, rows: Sequence[tuple[int, Sequence[int], int]], tables: np.ndarray, step: int = 1
) -> Batch:
    """A batch of (request, ids, first position) chunks; every token wants its logits.

    tables: page numbers [R, P], or [groups, R, P]: groups share one pool, so theirs must differ.
    """
    b = Batch(layout)
    total = sum(len(ids) for _, ids, _ in rows)
    tables = np.broadcast_to(tables, (len(layout.groups), *tables.shape[-2:]))
    b.resize(step=step, T=total, R=tables.shape[1], L=total)
    by_group = dict(zip(layout.groups, tables, strict=True))
    for name, table in by_group.items():
        b[f"page_table.{name}"][:, : table.shape[1]] = table
    at = 0
    for request, ids, first in rows:
        part = slice(at, at + len(ids))
        positions = np.arange(first, first + len(ids))
        b["ids"][part], b["request"][part] = ids, request
        b["positions"][:, part], b["kv_len"][part] = positions, positions + 1
        for name, table in by_group.items():
            b[f"kv_slot.{name}"][part] = table[request][positions // PAGE] * PAGE + positions % PAGE
        at += len(ids)
    b["out_rows"][:] = np.arange(total)
    b["want"][:] = WANT_IDS | WANT_LOGITS
    b["sampler"]["target"], b["sampler"]["mask_row"] = -1, -1
    b["sampler"]["top_p"], b["sampler"]["typical_p"], b["sampler"]["repetition"] = 1, 1, 1
    return b


def logits(step: ReferenceStep, *chunks: Sequence[int], table: Sequence[int] = (3, 7, 1)) -> np.ndarray:
    """Logits of every position of one sequence given in chunks."""
    first, out = 0, []
    for ids in chunks:
        out.append(step.run(new_batch(step.layout, [(0, ids, first)], np.array([table]))).logits)
        first += len(ids)
    return np.concatenate(out)
