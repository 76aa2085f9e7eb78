"""How near the linear kernels come to this machine: one layer's four matrices, again and again, through a step.

    python benchmarks/kernels.py --shape 1b --format q4_1 --rows 1,16,512

Every round measures the peak of the arithmetic used and a load-only loop over as many bytes, then a step of each
number of rows; ratios are taken within a round, and medians of all rounds are printed. Activations are quantised once
per width, outside of what is counted. The last line of output is one JSON object with --json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ridgeline import ops
from ridgeline.analysis import hardware
from ridgeline.analysis.probe import Probe
from ridgeline.analysis.roofline import multiplies
from ridgeline.backends.cpu.backend import CPU
from ridgeline.cores import available_cores
from ridgeline.ops.spec import TensorType
from ridgeline.program import cost
from ridgeline.program.batch import Batch, BatchLayout, Limits
from ridgeline.program.capture import Context, capture
from ridgeline.program.ir import Buffer, Entry, Instr, Program, View, Weight
from ridgeline.program.passes import pipeline
from ridgeline.program.passes.rewrite import next_id
from ridgeline.weights.source import RandomSource

SHAPES = {  # (rows, columns) of q/k/v, o, gate/up, down; layers
    "1b": (((3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192)), 3),
    "135m": (((960, 576), (576, 576), (3072, 576), (576, 1536)), 30),
}
VOCAB = 32  # rows of the tables that activations come from
SHORT_ROWS, SHORT_STEPS = 32, 3  # steps of so few rows are repeated, as load-only passes are; the quickest counts


@dataclass(frozen=True)
class Case:
    """What is measured: a compiled step, its linears' work per row, and the bytes of their weights."""

    step: Any
    kind: str  # of arithmetic: int8, bf16 or f32
    ops_per_row: float
    nbytes: int


def build(shape: str, layers: int, format: str, rows_type: str, cpu: CPU, rows: int) -> Case:
    """The layers' linears over random weights in `format`, compiled by `cpu` for steps of up to `rows` rows."""
    matrices, usual = SHAPES[shape]
    passes = pipeline.passes(
        lambda w: format if len(w.shape) > 1 else "f32", "bf16", fused=False, held_as=cpu.held_as
    )  # fmt: skip
    program = pipeline.run(_captured(matrices, layers or usual), passes)
    program = replace(program, forward=_quantized(program, rows_type))
    source = RandomSource({w.name: w.shape for w in program.weights.values()}, format)
    limits = Limits(rows, 1, 1, 1, VOCAB, matrices[0][1], bias=1, history=1)
    step = cpu.compile(program, lambda w: source.read(w.name), BatchLayout.of(limits, ()), 0)
    linears = [i for i in program.forward.instrs if _counts(i)]
    weights = [w for i in linears if isinstance(w := i.operands["w"], Weight)]
    work = sum(2.0 * w.shape[0] * w.shape[1] for w in weights)
    return Case(step, multiplies(linears[0]), work, sum(map(cost.weight_nbytes, weights)))


def _quantized(program: Program, rows_type: str) -> Entry:
    """The forward entry, whose layers' linears read rows of `rows_type`, made once for each width."""
    fresh = itertools.count(next_id(program))
    instrs: list[Instr] = []
    done: dict[View, View] = {}
    for instr in program.forward.instrs:
        x = instr.operands.get("x")
        if rows_type == "f32" or not _counts(instr) or not isinstance(x, View):
            instrs.append(instr)
            continue
        if x not in done:
            out = Buffer(next(fresh), TensorType(x.type.shape, rows_type))
            attrs = {} if rows_type == "i8g32" else {"dtype": rows_type}
            instrs.append(Instr("quantize_act", {"x": x}, (out,), attrs))
            done[x] = View(out, 0, x.stop - x.start)
        instrs.append(replace(instr, operands={**instr.operands, "x": done[x]}))
    return replace(program.forward, instrs=tuple(instrs))


def _captured(matrices: Sequence[tuple[int, int]], layers: int) -> Program:
    """A program whose linears read rows of a table of their width."""
    hidden = matrices[0][1]

    def forward(m: Context) -> tuple[Any, Any]:
        ids = m.field("ids")
        x = {k: ops.embedding(ids, m.weight(f"table.{k}", (VOCAB, k), ("", ""))) for k in {k for _, k in matrices}}
        for layer in range(layers):
            for i, (n, k) in enumerate(matrices):
                ops.linear(x[k], m.weight(f"layers.{layer}.{i}", (n, k), ("", "")))
        rows = ops.take_rows(x[hidden], m.field("out_rows"))
        return rows, rows

    return capture("kernels", forward, lambda m, h: ops.linear(h, m.weight("head", (VOCAB, hidden), ("", ""))))


def _counts(instr: Instr) -> bool:
    w = instr.operands.get("w")
    return instr.op == "linear" and isinstance(w, Weight) and w.name.startswith("layers.")


def batch_of(step: Any, rows: int) -> Batch:
    """A batch of `rows` tokens, of which the first one's row is sampled."""
    b = Batch(step.layout)
    b.resize(step=1, T=rows, R=1, L=1)
    b["ids"][:] = [i % VOCAB for i in range(rows)]
    s = b["sampler"]
    s["target"], s["mask_row"], s["top_p"], s["typical_p"], s["repetition"] = -1, -1, 1, 1, 1
    return b


def seconds(case: Case, batch: Batch) -> float:
    """Time of the linears of one step: their work, and the wait for the other threads after each."""
    times = case.step.profile(batch)
    after = [wait for _, wait, _ in times[1:]] + [0.0]
    return sum(work + wait for (instr, _, work), wait in zip(times, after, strict=True) if _counts(instr))


def measure(case: Case, threads: int, rows: Sequence[int], rounds: int) -> dict[str, Any]:
    """All rounds; per number of rows the medians of what each round gave."""
    batches = {m: batch_of(case.step, m) for m in rows}
    probe = Probe(threads, case.nbytes)
    for batch in batches.values():
        seconds(case, batch)
    peaks, loads, barriers = [], [], []
    found: dict[int, list[tuple[float, ...]]] = {m: [] for m in rows}
    for _ in range(rounds):
        barriers.append(hardware.barrier())
        peaks.append(probe.peak_gops(case.kind) or probe.peak_gops("f32"))  # what bf16 is computed as without its own
        loads.append(max(probe.read_gb_s(case.nbytes, 0.0) for _ in range(SHORT_STEPS)))
        for m, batch in batches.items():
            s = min(seconds(case, batch) for _ in range(SHORT_STEPS if m <= SHORT_ROWS else 1))
            gops, gb_s = case.ops_per_row * m / s / 1e9, case.nbytes / s / 1e9
            found[m].append((s, gops, gops / peaks[-1], gb_s, gb_s / loads[-1]))
    return {
        "kind": case.kind, "nbytes": case.nbytes, "barrier_ns": barriers, "cores": hardware.state_of(barriers),
        "peak_gops": statistics.median(peaks), "load_only_gb_s": statistics.median(loads),
        "rows": {m: _medians(samples) for m, samples in found.items()},
    }  # fmt: skip


def _medians(samples: Sequence[tuple[float, ...]]) -> dict[str, float]:
    names = ("seconds", "gops", "of_peak", "gb_s", "of_load_only")
    return {name: statistics.median(x) for name, x in zip(names, zip(*samples, strict=True), strict=True)}


def show(result: dict[str, Any]) -> None:
    barriers = " ".join("-" if ns is None else f"{ns:.0f}" for ns in result["barrier_ns"])
    print(f"{result['shape']}, {result['format']} weights, {result['activations']} activations, {result['isa']}, "
          f"{result['threads']} threads, {result['nbytes'] / 1e6:.0f} MB")  # fmt: skip
    print(f"cores {result['cores']} (barrier {barriers} ns), {result['kind']} peak {result['peak_gops']:.0f} G/s, "
          f"load-only {result['load_only_gb_s']:.1f} GB/s")  # fmt: skip
    print(f"{'rows':>5} {'ms':>9} {'G/s':>7} {'of peak':>8} {'GB/s':>7} {'of load-only':>13}")
    for m, r in result["rows"].items():
        print(f"{m:>5} {r['seconds'] * 1e3:>9.3f} {r['gops']:>7.1f} {r['of_peak']:>8.1%} "
              f"{r['gb_s']:>7.1f} {r['of_load_only']:>13.1%}")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--format", default="q4_1", help="stored weight format")
    parser.add_argument("--activations", default="", help="type of the rows: f32, bf16, i8, i8g32, i8g64 or i8g128")
    parser.add_argument("--rows", default="1,2,4,8,16,32,128,512", help="rows of the steps")
    parser.add_argument("--layers", type=int, default=0, help="0: enough to leave the caches (1b), or all (135m)")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--isa", default="", help="portable, avx2 or avx512; the best by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    rows = [int(m) for m in args.rows.split(",")]
    cpu = CPU(args.threads, args.isa)
    rows_type = args.activations or cpu.multiplies.get(cpu.held_as[args.format], ("f32",))[0]
    case = build(args.shape, args.layers, args.format, rows_type, cpu, max(rows))
    head = {"shape": args.shape, "format": args.format, "activations": rows_type, "isa": cpu.isa}
    result = {**head, "threads": args.threads, **measure(case, args.threads, rows, args.rounds)}
    if not args.json:
        return show(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
