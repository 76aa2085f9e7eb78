"""Cold start: from the start of a process to its first text, and what that costs, against a bare interpreter.

Each round runs every case once, so that all see the same machine; medians over the rounds are printed, with the least,
for a start is only ever slowed down. The page cache is warm after the first round, which does not count.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PROMPT = "Name the capital of France."
STEPS = 200


@dataclass(frozen=True)
class Start:
    """Seconds to the first byte on stdout and of processor time, and the most memory in MB."""

    first_s: float
    cpu_s: float
    rss_mb: float


def start(command: list[str]) -> Start:
    """Run a command to its end; stderr is not looked at."""
    begin = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    first = os.read(child.stdout.fileno(), 1)
    first_s = time.perf_counter() - begin
    child.stdout.read()
    _, status, used = os.wait4(child.pid, 0)
    if status or not first:
        raise SystemExit(f"{' '.join(command)} ended with status {status} and {'some' if first else 'no'} output")
    return Start(first_s, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6)


def cases(model: str, threads: int) -> dict[str, list[str]]:
    """What is started, by name."""
    python = [sys.executable, "-c"]
    ours = [sys.executable, "-m", "ridgeline", "run", model, PROMPT, "--max-tokens", "1", "--threads", str(threads)]
    return {
        "python": [*python, "print()"],
        "import ridgeline": [*python, "import ridgeline; print()"],
        "import numpy": [*python, "import numpy; print()"],
        "first token": ours,
        "first token, nothing kept": [*ours, "--packed-cache", "0"],
    }


def overhead_ms(model: str, threads: int) -> float:
    """Milliseconds of a one-row step outside the native call, the median of many."""
    from ridgeline.engine.params import SamplingParams
    from ridgeline.llm import LLM

    llm = LLM(model, threads=threads, max_requests=1)
    step, client = llm._loaded.step, llm.client
    client.submit(list(range(20, 40)), SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True), lambda _: None)
    client.pump(0)
    outside = []
    while not client.idle:
        begin, native = time.perf_counter(), step.native_s
        client.pump(0)
        outside.append(time.perf_counter() - begin - (step.native_s - native))
    return 1e3 * statistics.median(outside)


def installed_mb(name: str, seen: set[str]) -> float:
    """MB of a distribution's files and of what it requires, without extras."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in seen:
        return 0.0
    seen.add(key)
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return 0.0
    sizes = (Path(str(found.locate_file(f))) for f in found.files or ())
    own = sum(p.stat().st_size for p in sizes if p.suffix != ".pyc" and p.is_file())
    needs = [r for r in found.requires or () if "extra ==" not in r]
    return own / 1e6 + sum(installed_mb(re.split(r"[^A-Za-z0-9._-]", r)[0], seen) for r in needs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    commands = cases(given.model, given.threads)
    runs: dict[str, list[Start]] = {name: [] for name in commands}
    for number in range(given.rounds + 1):
        for name, command in commands.items():
            done = start(command)
            if number:
                runs[name].append(done)
    result = {
        name: {
            key: {"median": statistics.median(values), "least": min(values)}
            for key in ("first_s", "cpu_s", "rss_mb")
            if (values := [getattr(run, key) for run in found])
        }
        for name, found in runs.items()
    }
    for name, found in result.items():
        shown = ", ".join(f"{key} {x['median']:.3f} (least {x['least']:.3f})" for key, x in found.items())
        print(f"{name}: {shown}", file=sys.stderr)
    extra = {
        "step_overhead_ms": overhead_ms(given.model, given.threads),
        "installed_mb": installed_mb("ridgeline-llm", set()),
        "load_average": os.getloadavg()[0],
        "rounds": given.rounds,
    }
    print(json.dumps({**result, **extra}))


if __name__ == "__main__":
    main()
