"""How near attention comes to the memory's speed: a program of attention alone, one instruction per layer.

    python benchmarks/attention.py --format bf16 --requests 16 --keys 4096 --heads 32 --kv-heads 8 --head-dim 64

Every round runs a load-only loop over the same bytes, then a step; the medians of all rounds are printed, and the
median of the ratios within rounds. With --tokens above 1 every request brings so many new keys (prefill), and
GFLOP/s count. Layers are as many as it takes for the keys to leave the caches; --layers sets their number.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ridgeline import ops  # noqa: F401  (fills the op table)
from ridgeline.analysis.probe import Probe
from ridgeline.backends.cpu import _native
from ridgeline.backends.cpu.backend import CPU, whole_runs
from ridgeline.backends.cpu.record import Extents, encode
from ridgeline.config import KV_FORMATS
from ridgeline.cores import available_cores
from ridgeline.ops.attention import PAGE
from ridgeline.ops.spec import TensorType
from ridgeline.program.batch import HEADER, MAGIC, VERSION, FieldSlot
from ridgeline.program.ir import Buffer, Entry, Field, Instr, State, StateRef, View
from ridgeline.program.memory import plan_memory

READ_S = 0.1  # of a load-only loop


class Bench:
    """The compiled program, its batch and pages filled with small values."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.cpu = args, CPU(args.threads, args.isa)
        self.tokens, width = args.requests * args.tokens, -(-args.keys // PAGE)
        state = State("g", args.layers, args.kv_heads, args.head_dim, args.format)
        self.token_bytes = state.layer_token_bytes
        self.layers = args.layers or max(1, round(600e6 / (self.token_bytes * args.keys * args.requests)))
        state = State("g", self.layers, args.kv_heads, args.head_dim, args.format)
        pages = np.arange(args.requests * width, dtype=np.int32)
        if args.pages == "random":
            pages = np.random.default_rng(1).permutation(pages)
        batch, slots = _batch(self._fields(pages.reshape(args.requests, width)))
        entry = self._entry(state, slots)
        plan = plan_memory(entry, None)
        sizes = dict.fromkeys(HEADER[4:], 0)
        record = encode(entry, plan, Extents(slots, batch.nbytes, sizes, ("g",), pages.size))
        held = whole_runs(pages.size)
        self.kv = _native.Memory(int(held * PAGE * self.layers * self.token_bytes) + 64)
        self.arena = _native.Memory(plan.nbytes + 64)
        self.kv.array().view(np.uint8)[:] = 0x3C
        rows = np.random.default_rng(0).standard_normal(plan.nbytes // 4, dtype=np.float32)
        self.arena.array()[: rows.nbytes] = rows.view(np.uint8)
        self.step = _native.Step(self.cpu.pool, self.cpu.isa, record.words, [], [], self.kv, self.arena)
        self.batch = batch

    def _fields(self, table: np.ndarray) -> dict[str, np.ndarray]:
        a = self.args
        request = np.repeat(np.arange(a.requests, dtype=np.int32), a.tokens)
        at = np.tile(np.arange(a.keys - a.tokens, a.keys, dtype=np.int32), a.requests)
        slot = table[request, at // PAGE] * PAGE + at % PAGE
        return {"page_table": table, "kv_slot": slot.astype(np.int32), "kv_len": at + 1, "request": request}

    def _entry(self, state: State, slots: dict[str, FieldSlot]) -> Entry:
        a = self.args
        widths = [n * a.head_dim for n in (a.heads, a.kv_heads, a.kv_heads)]
        params = [Buffer(i, TensorType((self.tokens, n), "f32")) for i, n in enumerate(widths)]
        q, k, v = (View(b, 0, b.type.columns) for b in params)
        fields = {name: Field(name, TensorType(s.shape)) for name, s in slots.items()}
        attrs = {"n_heads": a.heads, "scale": a.head_dim**-0.5, "window": a.window}
        instrs = []
        for layer in range(self.layers):
            operands = {"q": q, "k": k, "v": v, "kv": StateRef(state, layer), **fields}
            operands |= dict.fromkeys(("path", "span", "sinks", "slopes"))
            instrs.append(Instr("attention", operands, (Buffer(100 + layer, q.buffer.type),), attrs))
        return Entry(tuple(params), tuple(instrs), (View(instrs[-1].outputs[0], 0, widths[0]),))

    def seconds(self) -> float:
        """Of one step."""
        begin = time.perf_counter()
        self.step.run(self.batch)
        return time.perf_counter() - begin

    @property
    def nbytes(self) -> float:
        """Of the keys and values that a step reads."""
        seen = min(self.args.keys, (self.args.window or self.args.keys) + self.args.tokens - 1)
        return self.layers * self.token_bytes * seen * self.args.requests

    @property
    def flops(self) -> float:
        """Of q . k and p . v, causal."""
        a = self.args
        attended = a.tokens * (a.keys - a.tokens) + a.tokens * (a.tokens + 1) / 2
        return 4.0 * self.layers * a.requests * attended * a.heads * a.head_dim


def _batch(fields: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, FieldSlot]]:
    slots, offset = {}, 8 * 16
    for name, x in fields.items():
        slots[name] = FieldSlot(name, offset, x.shape, ("",) * x.ndim, x.dtype)
        offset += -(-x.nbytes // 64) * 64
    batch = np.zeros(offset, np.uint8)
    batch[: 8 * 3].view(np.int64)[:] = MAGIC, VERSION, offset
    for name, x in fields.items():
        at = slots[name].offset
        batch[at : at + x.nbytes] = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    return batch, slots


def measure(bench: Bench, rounds: int) -> dict[str, Any]:
    """Medians over rounds; every ratio is of one round."""
    probe = Probe(bench.args.threads, int(bench.nbytes))
    bench.seconds()
    samples = []
    for _ in range(rounds):
        barrier, load = probe.barrier_ns(), probe.read_gb_s(int(bench.nbytes), READ_S)
        s = min(bench.seconds() for _ in range(2))
        samples.append((s, load, bench.nbytes / s / 1e9, bench.nbytes / s / 1e9 / load, barrier or 0.0))
    s, load, gb_s, ratio, barrier = (statistics.median(x) for x in zip(*samples, strict=True))
    return {
        "layers": bench.layers, "layer_us": s / bench.layers * 1e6, "mb": bench.nbytes / 1e6, "gb_s": gb_s,
        "load_only_gb_s": load, "of_load_only": ratio, "gflops": bench.flops / s / 1e9, "barrier_ns": barrier,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=KV_FORMATS, default="bf16")
    for name, default in (("requests", 16), ("keys", 4096), ("tokens", 1), ("heads", 32), ("kv-heads", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--window", type=int, default=0)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--pages", choices=("neighbours", "random"), default="neighbours")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--isa", default="")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    bench = Bench(args)
    found = measure(bench, args.rounds)
    if args.json:
        return print(json.dumps({**vars(args), "isa": bench.cpu.isa, **found}))
    print(f"{args.requests} x {args.tokens} of {args.keys} keys, {args.heads}:{args.kv_heads} x {args.head_dim}, "
          f"{args.format}, {args.pages} pages, {bench.cpu.isa}, {args.threads} threads (barrier "
          f"{found['barrier_ns']:.0f} ns)")  # fmt: skip
    print(f"{found['layer_us']:.1f} us a layer, {found['gflops']:.0f} GFLOP/s; {found['mb']:.0f} MB at "
          f"{found['gb_s']:.1f} GB/s, load-only {found['load_only_gb_s']:.1f}: "
          f"{found['of_load_only']:.0%}")  # fmt: skip


if __name__ == "__main__":
    main()
