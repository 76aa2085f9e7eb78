"""The reference backend: numpy, float32, row by row. Slow and correct; every other backend is held to it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ridgeline.backends.base import MULTIPLIES, ReadWeight, Store, open_states, run_copies
from ridgeline.ops.attention import KVPages
from ridgeline.program.batch import WANT_HIDDEN, WANT_HOLD, WANT_LOGITS, WANT_SAMPLE, Batch, BatchLayout, StepResult
from ridgeline.program.interpret import Bindings, interpret
from ridgeline.program.ir import Program, Weight
from ridgeline.quant.format import FORMATS

STORES: Mapping[str, Store] = {"kv": lambda s, pages: KVPages.empty(pages, s.n_kv_heads, s.head_dim, s.format)}


class Reference:
    """Backend of the oracle: weights are unpacked to float32 and each op runs its numpy meaning."""

    name = "reference"
    held_as: Mapping[str, str] = {name: name for name in FORMATS}
    multiplies = MULTIPLIES
    unpacks_to = "f32"

    def compile(
        self, program: Program, read: ReadWeight, layout: BatchLayout, pages: int, packed: object = None
    ) -> ReferenceStep:
        weights = {w.name: _array(w, read) for w in program.weights.values()}
        return ReferenceStep(program, weights, layout, pages)


def _array(w: Weight, read: ReadWeight) -> np.ndarray:
    return np.array(w.constant, np.float32) if w.constant is not None else read(w).float32()


class ReferenceStep:
    """A program bound to arrays: fields come from the batch, states and weights are its own."""

    def __init__(
        self, program: Program, weights: Mapping[str, np.ndarray], layout: BatchLayout, pages: int,
        comms: Mapping[str, object] | None = None, stores: Mapping[str, Store] = STORES,
    ) -> None:  # fmt: skip
        self.program, self.weights, self.layout, self.comms = program, weights, layout, comms or {}
        self.states = open_states(program, stores, pages)
        self.held = np.zeros((layout.limits.held, layout.limits.hidden), np.float32)

    def run(self, batch: Batch) -> StepResult:
        """Copies first, then forward, then sample."""
        run_copies(batch, self.states)
        fields = {**batch.fields(), "held": self.held}
        bindings = Bindings(fields, self.weights, self.states, self.comms)
        kept, hidden, *extra = interpret(self.program.forward, [], bindings)
        want = batch["want"]
        holding = np.flatnonzero(want & WANT_HOLD)
        self.held[batch["hold_slot"][holding]] = kept[holding]
        if want.size and not np.any(want & WANT_SAMPLE):
            return StepResult(batch.size("step"), np.zeros(len(want), np.int32), hidden=hidden, extra=tuple(extra))
        ids, logprobs, top_ids, top_logprobs, logits = interpret(self.program.sample, [hidden], bindings)
        return StepResult(
            batch.size("step"), ids, logprobs, top_ids, top_logprobs,
            hidden if np.any(want & WANT_HIDDEN) else None, logits if np.any(want & WANT_LOGITS) else None,
            tuple(extra),
        )  # fmt: skip
