"""`python -m soak --minutes 20`: scenarios of consecutive seeds; `--seed N` or `--trace FILE` plays one of them alone.

A scenario that fails is written as a trace, and how to replay it is printed. The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path

import msgspec

from soak.scenario import Scenario, draw
from soak.soak import Soak

_TOLD_S = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="soak")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--start", type=int, help="first seed; drawn from the clock unless given")
    parser.add_argument("--seed", type=int, help="play the scenario of this seed alone")
    parser.add_argument("--trace", type=Path, help="play the scenario of a trace alone")
    args = parser.parse_args()
    one = draw(args.seed) if args.seed is not None else None
    if args.trace is not None:
        one = msgspec.json.decode(args.trace.read_bytes(), type=Scenario)
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder))
        if one is not None:
            return _one(soak, one)
        return _many(soak, int(time.time()) if args.start is None else args.start, args.minutes)


def _one(soak: Soak, scenario: Scenario) -> int:
    try:
        soak.play(scenario)
    except Exception:
        traceback.print_exc()
    print(json.dumps(soak.record()))
    return 1 if soak.failed else 0


def _many(soak: Soak, start: int, minutes: float) -> int:
    end, told = time.monotonic() + 60 * minutes, time.monotonic()
    print(f"soak: seeds from {start}", file=sys.stderr, flush=True)
    seed = start
    while time.monotonic() < end:
        scenario = draw(seed)
        try:
            soak.play(scenario)
        except Exception:
            traceback.print_exc()
            trace = Path(f"soak-{seed}.json")
            trace.write_bytes(msgspec.json.encode(scenario))
            print(f"soak: replay with `make soak SEED={seed}` or `make soak TRACE={trace}`", file=sys.stderr)
        seed += 1
        if time.monotonic() > told + _TOLD_S:
            told = time.monotonic()
            print(f"soak: {json.dumps(soak.record())}", file=sys.stderr, flush=True)
    print(json.dumps({"start": start, **soak.record()}))
    return 1 if soak.failed else 0


if __name__ == "__main__":
    sys.exit(main())
