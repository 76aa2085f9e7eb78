"""Where a step's time goes: its instructions by op, in the native loop, with the waits that their imbalance causes.

    python benchmarks/step.py smollm2-135m --rows 1 --context 128
    python benchmarks/step.py random:1b --set format=q8_0 --tokens 256 --context 0

A step of `--rows` requests, each with `--tokens` new tokens after `--context` ones, is run `--repeat` times. Times are
thread 0's: its own work, and its wait for the other threads afterwards; medians by instruction, summed by op.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from ridgeline.cores import available_cores
from ridgeline.llm import LLM
from ridgeline.program.ir import Instr, Weight
from ridgeline.tools.bench import prompt_of
from ridgeline.tools.traffic import fill, prefill_steps, prepared

Times = list[tuple[Instr, float, float]]  # instruction, seconds of work, seconds of waiting after it


def profile(llm: LLM, rows: int, context: int, tokens: int, repeat: int) -> Times:
    """Medians of `repeat` steps; the context is computed first, and the same step is run each time."""
    rng = random.Random(0)
    batch = prepared(llm, rows, context + tokens)
    for chunks in prefill_steps(rows, context, llm.info.step_tokens) if context else ():
        fill(batch, chunks, np.array(prompt_of(llm, sum(n for _, _, n in chunks), rng), np.int32), context)
        llm.step.run(batch)
    ids = np.array(prompt_of(llm, rows * tokens, rng), np.int32)
    fill(batch, [(r, context, tokens) for r in range(rows)], ids, 0)
    runs = [llm.step.profile(batch) for _ in range(repeat + 1)][1:]
    found = []
    for i, (instr, _, _) in enumerate(runs[0]):
        after = [run[i + 1][1] for run in runs] if i + 1 < len(runs[0]) else [0.0]
        found.append((instr, statistics.median(run[i][2] for run in runs), statistics.median(after)))
    return found


def name_of(instr: Instr, by: str) -> str:
    """The op; with "weight" also the matrix's name without its layer, and its shape."""
    w = instr.operands.get("w")
    if by == "op" or not isinstance(w, Weight):
        return instr.op
    parts = [".".join(x for x in p.split(".") if not x.isdigit() and x not in ("layers", "weight")) for p in w.parts]
    return f"{instr.op} {'+'.join(parts)} {'x'.join(map(str, w.shape))}"


def show(times: Times, by: str) -> None:
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for instr, work, wait in times:
        line = sums[name_of(instr, by)]
        line[0], line[1], line[2] = line[0] + 1, line[1] + work, line[2] + wait
    whole = sum(work + wait for _, work, wait in times)
    print(f"{'':48} {'count':>6} {'work ms':>9} {'wait ms':>9} {'%':>6}")
    for name, (count, work, wait) in sorted(sums.items(), key=lambda x: -x[1][1] - x[1][2]):
        print(f"{name:48} {count:>6.0f} {work * 1e3:>9.3f} {wait * 1e3:>9.3f} {(work + wait) / whole:>6.1%}")
    print(f"{'total':48} {len(times):>6} {sum(t[1] for t in times) * 1e3:>9.3f} {sum(t[2] for t in times) * 1e3:>9.3f}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=1, help="requests in the step")
    parser.add_argument("--tokens", type=int, default=1, help="new tokens of each")
    parser.add_argument("--context", type=int, default=64, help="tokens of each that are there before")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--by", choices=("op", "weight"), default="op")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any engine setting")
    args = parser.parse_args(argv)
    settings = dict(word.split("=", 1) for word in args.set)
    most = max(args.rows * args.tokens, 256)
    llm = LLM(args.model, threads=args.threads, max_requests=args.rows, step_tokens=most, **settings)
    show(profile(llm, args.rows, args.context, args.tokens, args.repeat), args.by)


if __name__ == "__main__":
    main()
