"""Ops that pick rows: embedding (token ids, or given input rows) and take_rows (rows that need logits)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ridgeline.ops.spec import Array, Call, Case, Cost, Load, TensorType, nbytes, op


def _embedding_cost(call: Call, load: Load) -> Cost:
    rows = load.size(call.outs[0].shape[0])
    row = call.weight_bytes["table"] / float(call.ins["table"].shape[0])
    return Cost(0.0, rows * row, 0.0, call.act(load))


def _embedding_cases(rng: np.random.Generator) -> Iterable[Case]:
    for rows, vocab, n in ((1, 100, 576), (5, 97, 80)):
        table = rng.standard_normal((vocab, n), dtype=np.float32)
        yield Case(f"{rows}x{n}", {"ids": rng.integers(0, vocab, rows, np.int32), "table": table})
    positions = rng.integers(0, 97, (1, 4), np.int32)
    scaled = {"ids": rng.integers(0, 97, 3, np.int32), "table": rng.standard_normal((97, 80), dtype=np.float32)}
    yield Case("scaled", scaled, {"scale": 25.25})
    yield Case("positions", {"ids": positions, "table": rng.standard_normal((97, 80), dtype=np.float32)}, {"axis": 0})


@op(
    "ids:field table:weight input_row:field? input_rows:field?",
    shape=lambda ids, table, *_, axis=0, scale=1.0: TensorType((ids.shape[-1], table.shape[1])),
    cost=_embedding_cost,
    cases=_embedding_cases,
    tolerance=0.0,
)
def embedding(
    ids: Array, table: Array, input_row: Array | None = None, input_rows: Array | None = None, *, axis: int = 0,
    scale: float = 1.0,
) -> Array:  # fmt: skip
    """scale * table[ids] as [T, n]; where input_row[t] >= 0 the row is input_rows[input_row[t]] as it is (soft
    prompts, images).

    `ids` is a field [T], or [A, T] of which row `axis` counts (learned positions).
    """
    rows: Array = table[ids if ids.ndim == 1 else ids[axis]].astype(np.float32) * np.float32(scale)
    if input_row is not None and input_rows is not None:
        given = np.flatnonzero(input_row >= 0)
        rows[given] = input_rows[input_row[given]]
    return rows


def _take_cases(rng: np.random.Generator) -> Iterable[Case]:
    x = rng.standard_normal((7, 576), dtype=np.float32)
    yield Case("subset", {"x": x, "out_rows": np.array([6, 0, 3], np.int32)})


def _take_shape(x: TensorType, out_rows: TensorType, held: Any = None) -> TensorType:
    return TensorType((out_rows.shape[0], x.columns))


@op(
    "x:act out_rows:field held:field?",
    shape=_take_shape,
    cost=lambda call, load: Cost(0.0, 0.0, 0.0, 2.0 * nbytes(call.outs[0], load)),
    cases=_take_cases,
    tolerance=0.0,
)
def take_rows(x: Array, out_rows: Array, held: Array | None = None) -> Array:
    """x[out_rows] as [L, n]; a negative entry r takes held[-1 - r], a row kept from an earlier step."""
    late = out_rows < 0
    rows = np.empty((len(out_rows), x.shape[1]), x.dtype)
    rows[~late] = x[out_rows[~late]]
    if late.any():
        assert held is not None, "a held row is asked for but the program has no held rows"
        rows[late] = held[-1 - out_rows[late]]
    return rows
