"""Spine probes on ranks: tensor parallel of 9/3 heads over two ranks, and an executor in another process."""

from __future__ import annotations

import multiprocessing
import threading
from dataclasses import replace

import numpy as np

from handmade import PAGES, TINY, arrays_of, limits, logits, make_step, new_batch
from ridgeline.backends.reference import ReferenceStep
from ridgeline.engine.executor import LocalExecutor
from ridgeline.models import build
from ridgeline.ops.spec import TensorType
from ridgeline.program.batch import Batch, BatchLayout
from ridgeline.program.ir import Buffer, CommRef, Entry, Instr, StateRef, View, Weight
from ridgeline.program.passes.rewrite import map_entries, next_id
from ridgeline.program.verify import infer, verify

TABLE = np.array([[3, 7, 1]])
D = TINY.head_dim
CUTS = {"heads": [(0, 6 * D), (6 * D, 9 * D)], "kv_heads": [(0, 2 * D), (2 * D, 3 * D)], "ffn": [(0, 24), (24, 40)]}


def shard(program, rank: int):
    """A toy shard pass: cut weights on named axes, retype, and add all_reduce where a contraction crosses a cut."""
    fresh = iter(range(next_id(program), 1 << 30))

    def cut(w: Weight) -> Weight:
        shape, rows, columns = list(w.shape), (), None
        if w.axes[0] in CUTS:
            rows = (CUTS[w.axes[0]][rank],)
            shape[0] = rows[0][1] - rows[0][0]
        if len(w.axes) > 1 and w.axes[1] in CUTS:
            columns = CUTS[w.axes[1]][rank]
            shape[1] = columns[1] - columns[0]
        return replace(w, shape=tuple(shape), rows=rows, columns=columns)

    def follow(x, moved):
        """A view of a whole buffer follows it; before fusing there are no others."""
        return moved.get(x.buffer.id, x) if isinstance(x, View) else x

    def entry(e: Entry) -> Entry:
        moved, instrs = {}, []
        for instr in e.instrs:
            operands = {k: cut(x) if isinstance(x, Weight) else follow(x, moved) for k, x in instr.operands.items()}
            attrs = dict(instr.attrs)
            if isinstance(operands.get("kv"), StateRef):
                ref = operands["kv"]
                operands["kv"] = replace(ref, state=replace(ref.state, n_kv_heads=2 - rank))
                attrs["n_heads"] = 6 - 3 * rank
            cut_instr = replace(instr, operands=operands, attrs=attrs)
            outputs = tuple(Buffer(next(fresh), t) for t in infer(cut_instr))
            for old, new in zip(instr.outputs, outputs, strict=True):
                moved[old.id] = View(new, 0, new.type.columns if len(new.type.shape) > 1 else 1)
            instrs.append(replace(cut_instr, outputs=outputs))
            w = operands.get("w")
            if instr.op == "linear" and isinstance(w, Weight) and w.columns is not None:
                summed = Buffer(next(fresh), TensorType(outputs[0].type.shape))
                whole = View(outputs[0], 0, outputs[0].type.columns)
                comm = CommRef("tensor", 2)
                instrs.append(Instr("all_reduce", {"x": whole, "comm": comm}, (summed,), {}, instr.scope))
                moved[instr.outputs[0].id] = View(summed, 0, summed.type.columns)
        return Entry(e.params, tuple(instrs), tuple(follow(r, moved) for r in e.results))

    return verify(map_entries(program, entry))


class ThreadComm:
    """Two ranks in two threads."""

    size = 2

    def __init__(self, rank: int, shared: list, barrier: threading.Barrier) -> None:
        self.rank, self.shared, self.barrier = rank, shared, barrier

    def all_reduce(self, x):
        self.shared[self.rank] = x
        self.barrier.wait(timeout=10)
        total = self.shared[0] + self.shared[1]
        self.barrier.wait(timeout=10)
        return total


def test_tensor_parallel_over_uneven_heads():
    program = build(TINY)
    ids = [5, 9, 11, 40, 2, 77]
    want = logits(make_step(program), ids)
    full, shared, barrier, got = arrays_of(program), [None, None], threading.Barrier(2), [None, None]

    def run(rank: int) -> None:
        mine = shard(program, rank)
        weights = {}
        for w in mine.weights.values():
            x = full[w.name]
            x = x[slice(*w.rows[0])] if w.rows else x
            weights[w.name] = x[:, slice(*w.columns)] if w.columns else x
        layout = BatchLayout.of(limits(), mine.states)
        comms = {"tensor": ThreadComm(rank, shared, barrier)}
        step = ReferenceStep(mine, weights, layout, PAGES, comms)
        got[rank] = logits(step, ids[:4], ids[4:])

    threads = [threading.Thread(target=run, args=(r,)) for r in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    np.testing.assert_array_equal(got[0], got[1])
    np.testing.assert_allclose(got[0], want, atol=1e-5)


def _serve(pipe) -> None:
    step = make_step(build(TINY))
    while (data := pipe.recv_bytes()) != b"":
        result = step.run(Batch(step.layout, np.frombuffer(bytearray(data), np.uint8)))
        pipe.send(result)


class PipeStep:
    """A Step in another process: the batch's bytes go over, the result comes back."""

    def __init__(self, layout: BatchLayout, pipe) -> None:
        self.layout, self._pipe = layout, pipe

    def run(self, batch: Batch):
        self._pipe.send_bytes(batch.buffer.tobytes())
        return self._pipe.recv()


def test_executor_in_another_process():
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,))
    child.start()
    try:
        local = make_step(build(TINY))
        remote = LocalExecutor(PipeStep(local.layout, ours))
        for n, (ids, first) in enumerate([([5, 9, 11], 0), ([40], 3)], start=1):
            batch = new_batch(local.layout, [(0, ids, first)], TABLE, step=n)
            got = remote.collect(remote.submit(batch))
            np.testing.assert_array_equal(got.logits, local.run(batch).logits)
    finally:
        ours.send_bytes(b"")
        child.join(timeout=10)
    assert child.exitcode == 0
