# ruff: noqa: E402
"""Overload: `ridgeline serve` in a cgroup of 1 GiB under ten times the clients that it has places for.

The patient clients of `tests/soak` ask again as soon as they are answered, and soon after they are refused; some go
away in the middle. It must not be killed, refuse with 429 and a retry-after, and bring everything that it accepts to a
proper end. Without the right to make a cgroup, memory is only watched. The last line of stdout is JSON; the exit status
says whether all of it held.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ridgeline.cgroups import groups, text

TESTS = str(Path(__file__).parents[1] / "tests")
sys.path.insert(0, TESTS)

from soak.crowd import Body, Connection, Crowd
from soak.processes import anonymous, family

_SAMPLE_S = 0.25
_END_S = 300.0  # for what was accepted to end
_LONGEST_WAIT_S = 2.0  # clients wait no longer than this, whatever they are told


class Box:
    """A cgroup with a limit, made below our own, or where that is not possible the memory of all our processes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.peak_anon, self.why = limit, 0, ""
        own, self._v2 = next(groups("memory", Path("/")), (Path("/none"), True))
        self.folder = own / f"ridgeline-overload-{os.getpid()}"
        try:
            self.folder.mkdir()
            (self.folder / ("memory.max" if self._v2 else "memory.limit_in_bytes")).write_text(str(limit))
        except OSError as error:
            self.why = f"no cgroup could be made: {error}"
            self.close()

    def command(self, command: list[str]) -> list[str]:
        """The command, in the cgroup from its beginning."""
        enter = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
        return command if self.why else ["sh", "-c", enter, str(self.folder), *command]

    def sample(self, pid: int) -> None:
        """Note the memory that cannot be given back."""
        stat = text(self.folder / "memory.stat")
        rows = dict(line.split()[:2] for line in stat.splitlines())
        anon = int(rows.get("anon" if self._v2 else "total_rss", 0)) if stat else sum(map(anonymous, family(pid)))
        self.peak_anon = max(self.peak_anon, anon)

    def record(self) -> dict[str, Any]:
        """The most memory, what of it is no file's, and how often the kernel killed somebody."""
        peak = text(self.folder / ("memory.peak" if self._v2 else "memory.max_usage_in_bytes"))
        events = text(self.folder / ("memory.events" if self._v2 else "memory.oom_control"))
        kills = dict(line.split() for line in events.splitlines()).get("oom_kill", "0")
        boxed = {"peak_mb": int(peak or 0) >> 20, "oom_kills": int(kills)} if not self.why else {"note": self.why}
        return {"limit_mb": self.limit >> 20, "peak_anon_mb": self.peak_anon >> 20, **boxed}

    def close(self) -> None:
        with suppress(OSError):
            self.folder.rmdir()


@contextmanager
def server(model: str, options: list[str], box: Box) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A server in a box: its port and its process."""
    command = [sys.executable, "-m", "ridgeline", "serve", model, "--port", "0", *options]
    process = subprocess.Popen(box.command(command), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit("the server did not start")
        yield int(line.rsplit(":", 1)[1]), process
    finally:
        process.terminate()
        process.wait(60)
        box.close()


def body(rng: random.Random) -> Body:
    """Prompts of a few to some 700 tokens; answers of log-normal length, mean about 60 tokens."""
    words = rng.choices(("the", "ridge", "is", "where", "memory", "meets", "arithmetic", "and"), k=rng.randint(3, 700))
    tokens = min(400, 1 + int(rng.lognormvariate(3.7, 0.9)))
    more: Body = rng.choice([{}, {}, {"n": 2}, {"logprobs": 5}])
    return {"prompt": " ".join(words), "max_tokens": tokens, **more}


async def drive(crowd: Crowd, clients: int, seconds: float, box: Box, process: subprocess.Popen[str]) -> None:
    """Let the crowd in for some seconds, then wait for those inside; watch the memory meanwhile."""
    tasks = [asyncio.ensure_future(crowd.patient(0.05)) for _ in range(clients)]
    begin = time.monotonic()
    while time.monotonic() < begin + seconds + _END_S and not all(t.done() for t in tasks):
        crowd.open = time.monotonic() < begin + seconds
        box.sample(process.pid)
        if process.poll() is not None:
            crowd.faults[f"the server ended with {process.returncode}"] += 1
            break
        await asyncio.sleep(_SAMPLE_S)
    late = sum(not t.done() for t in tasks)
    if late:
        crowd.faults["clients still wait"] += late
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Options of `ridgeline serve` follow after --.")
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--clients", type=int, default=640)
    parser.add_argument("--places", type=int, default=64, help="requests that run at once, and as many that wait")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--memory", type=int, default=1 << 30)
    parser.add_argument("--seed", type=int, default=0)
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args, options = parser.parse_args(sys.argv[1:cut]), sys.argv[cut + 1 :]
    box = Box(args.memory)
    places = ["--max-requests", str(args.places), "--max-concurrent-requests", str(2 * args.places)]
    with server(args.model, [*places, *options], box) as (port, process):
        crowd = Crowd(port, args.seed, body, _LONGEST_WAIT_S)
        asyncio.run(drive(crowd, args.clients, args.seconds, box, process))
        asyncio.run(_last(crowd))
        memory = box.record()
    held = not crowd.faults and not memory.get("oom_kills") and memory["peak_anon_mb"] <= memory["limit_mb"]
    counts = dict(sorted(crowd.counts.items()))
    print(json.dumps({"model": args.model, "held": held, **memory, **counts, "faults": dict(crowd.faults)}))
    return 0 if held else 1


async def _last(crowd: Crowd) -> None:
    """When the crowd has gone, the next one is served at once."""
    before = crowd.counts["ended"]
    with suppress(OSError, asyncio.IncompleteReadError):
        await crowd.ask(Connection(crowd.port))
    if crowd.counts["ended"] == before:
        crowd.faults["not serving afterwards"] += 1


if __name__ == "__main__":
    sys.exit(main())
