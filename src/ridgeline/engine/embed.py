"""Embeddings: a prompt's hidden rows pooled into one vector, instead of an answer.

Rows are added one at a time, in order of position, in float64: how a prompt was cut into steps, or whether it had to
begin again, changes no bit of it. Knows neither sequences nor batches.
"""

from __future__ import annotations

import numpy as np

from ridgeline.ops.spec import Array


class Embedding:
    """The vector of a prompt: the mean of all its rows, or the last one."""

    def __init__(self, pooling: str) -> None:
        self.every = pooling == "mean"  # whether all rows are needed
        self._sum: Array | None = None
        self._rows = 0

    def add(self, row: Array) -> None:
        """The hidden state of the next position; float32 [hidden]."""
        self._sum = row.astype(np.float64) if self._sum is None else self._sum + row
        self._rows += 1

    @property
    def vector(self) -> bytes:
        """float32, little-endian [hidden]."""
        assert self._sum is not None, "an embedding of no rows"
        return (self._sum / self._rows).astype("<f4").tobytes()
