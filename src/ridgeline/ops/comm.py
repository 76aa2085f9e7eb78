"""all_reduce and all_gather over a mesh axis. The communicator is an operand, bound by the executor of a rank."""

from __future__ import annotations

from typing import Protocol

from ridgeline.ops.spec import Array, Cost, TensorType, op


class Comm(Protocol):
    """The ranks of one mesh axis. Both calls block until every rank has called."""

    size: int

    def all_reduce(self, x: Array) -> Array:
        """Sum over ranks in ascending rank order, so that every rank holds the same bits."""

    def all_gather(self, x: Array) -> Array:
        """Columns of all ranks side by side, in rank order."""


@op(
    "x:act comm:comm",
    shape=lambda x, comm: x,
    cost=lambda call, load: Cost(0.0, 0.0, 0.0, 2.0 * call.act(load)),
    cases=lambda rng: (),
    tolerance=0.0,
)
def all_reduce(x: Array, comm: Comm) -> Array:
    """Sum of x [T, n] over the ranks."""
    return comm.all_reduce(x)


@op(
    "x:act comm:comm",
    shape=lambda x, comm: TensorType((x.shape[0], x.columns * comm.size)),
    cost=lambda call, load: Cost(0.0, 0.0, 0.0, call.act(load)),
    cases=lambda rng: (),
    tolerance=0.0,
)
def all_gather(x: Array, comm: Comm) -> Array:
    """Columns of x [T, n] of every rank, side by side: [T, n * ranks]."""
    return comm.all_gather(x)
