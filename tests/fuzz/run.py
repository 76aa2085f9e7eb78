"""Runs a fuzz target: `run.py TARGET --seed S --start N --count M`; `run.py all --count 1000000`.

A parent that waits and children that may die: a crash or a hang costs one child and names its mutation. With
--count 1 the mutation runs here, showing the case and the whole traceback. The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from meter import unchecked
from work import ROOM, STATUS, Report, load, random_of, work

CHUNK = 25_000  # mutations per child
HANGS_S = 30.0
# Of a run of all targets; rendering templates is some ten times slower than reading headers.
SHARES = {"gguf": 0.31, "safetensors": 0.25, "config": 0.26, "tokenizer": 0.12, "template": 0.06}


def watch(target: str, seed: int, start: int, count: int) -> Report:
    """Mutations start .. start + count of a target, in children. Crashes and hangs are failures of the report."""
    total, at, stop = Report(target), start, start + count
    while at < stop and not total.enough:
        until = min(at + CHUNK, stop)
        total.add(_chunk(target, seed, at, until))
        at = total.mutations + start
    return total


def _chunk(target: str, seed: int, start: int, stop: int) -> Report:
    """One child; when it is lost, the report ends with the mutation that it was lost in."""
    with tempfile.TemporaryDirectory() as folder:
        status, stderr = Path(folder, "status"), Path(folder, "stderr")
        status.write_bytes(STATUS.pack(start, time.monotonic()))
        options = [target, f"--seed={seed}", f"--start={start}", f"--count={stop - start}", f"--child={status}"]
        env = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0", "PYTHONFAULTHANDLER": "1"}
        with stderr.open("wb") as errors:
            child = subprocess.Popen(
                [sys.executable, __file__, *options], stdout=subprocess.PIPE, stderr=errors, env=env
            )
        hung = False
        while True:
            try:
                out, _ = child.communicate(timeout=1)
                break
            except subprocess.TimeoutExpired:
                hung = time.monotonic() - STATUS.unpack(status.read_bytes())[1] > HANGS_S
                if hung:
                    child.kill()
        if child.returncode == 0:
            fields = json.loads(out)
            return Report(**{**fields, **{key: Counter(fields[key]) for key in ("outcomes", "failed")}})
        number = STATUS.unpack(status.read_bytes())[0]
        report = Report(
            target, mutations=number + 1 - start, outcomes=Counter({"lost count": number - start, "lost": 1})
        )
        kind = f"no end within {HANGS_S:g} s" if hung else f"the process ended with {child.returncode}"
        report.fail(number, kind, stderr.read_text(errors="replace").strip()[-300:])
        return report


def replay(target: str, seed: int, number: int) -> bool:
    """One mutation in this process, in the open; whether it returned."""
    with tempfile.TemporaryDirectory() as scratch:
        fuzz = load(target, Path(scratch))
        case = fuzz.mutate(random_of(seed, number))
        print(f"{case!r:.20000}")
        try:
            fuzz.run(case, unchecked)
        except BaseException:
            traceback.print_exc()
            return False
    print("accepted")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=[*SHARES, "all"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--child", type=Path)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(work(args.target, args.seed, args.start, args.count, args.child).record()))
        return 0
    if args.count == 1 and args.target in ROOM:
        replay(args.target, args.seed, args.start)
        return 0
    shares = SHARES if args.target == "all" else {args.target: 1.0}
    reports = []
    for target, share in shares.items():
        reports.append(watch(target, args.seed, args.start, round(args.count * share)).record())
        print(json.dumps(reports[-1]), file=sys.stderr, flush=True)
    failures = sum(sum(r["failed"].values()) for r in reports)
    mutations = sum(r["mutations"] for r in reports)
    print(json.dumps({"mutations": mutations, "failures": failures, "seed": args.seed, "targets": reports}))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
