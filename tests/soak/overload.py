"""`python -m soak.overload --minutes 5`: far more clients than places, and those that a server must not trust.

First as many clients as there are places to run and wait: the most that the server can do. Then ten times as many, of
which some leave in the middle; others read slowly or not at all, open connections and say nothing, stop in a head or a
body, close their half, or send far too much. Memory must stay flat, complete answers bring 90 % of the tokens a second
that they brought without the crowd, refusals be 429 with a retry-after, and all that was accepted end once, for the
clients and for the server. The last line of stdout is JSON; the exit status says whether all of it held.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soak.crowd import Body, Crowd
from soak.processes import anonymous, family, open_files

TESTS = Path(__file__).parents[1]
_END_S = 60.0  # for what was accepted to end
_LONGEST_WAIT_S = 5.0
_GROWTH_MB = 24  # that is no leak, and 5 % beside it
_SPARE_FILES = 16  # open ones beside connections
_SAMPLE_S = 0.25
_STOPPED_S = 2.0  # a sample that comes so much later was held up by a stop of us all, as in a paused container


@dataclass
class Phase:
    """What was measured while a crowd was in. Rates are tokens a second: those that went out, but for answers that the
    server broke off, and those of complete answers; memory is of all the server's processes, in MB."""

    sent: float
    complete: float
    memory: list[float]
    connections: int  # the most at once
    counts: Counter[str]  # of the crowd, in this phase
    stopped: float  # seconds that do not count


def body(rng: random.Random) -> Body:
    """Short prompts, answers of 20 to 60 tokens."""
    return {"prompt": "a" * rng.randint(1, 200), "max_tokens": rng.randint(20, 60)}


async def tokens_out(port: int) -> int:
    """Tokens that went out, but for those of answers that the server broke off."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /tokens HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    reply = await reader.read()
    writer.close()
    return int(reply.rsplit(b"\r\n", 1)[1])


async def phase(crowd: Crowd, clients: list[Any], seconds: float, pid: int) -> Phase:
    """Let clients in for some seconds, of which the first are not measured, and wait for those inside."""
    before = crowd.counts.copy()
    tasks = [asyncio.ensure_future(client) for client in clients]
    warm = min(seconds / 4, 10.0)
    await asyncio.sleep(warm)
    begin, had, memory, files, stopped = time.monotonic(), await tokens_out(crowd.port), [], 0, 0.0
    now = begin
    while now - begin - stopped < seconds - warm:
        memory.append(sum(map(anonymous, family(pid))) / 2**20)
        files = max(files, open_files(pid))
        await asyncio.sleep(_SAMPLE_S)
        before_that, now = now, time.monotonic()
        stopped += now - before_that if now - before_that > _STOPPED_S else 0.0
    sent = (await tokens_out(crowd.port) - had) / (now - begin - stopped)
    complete = sum(tokens for at, tokens in crowd.complete if begin <= at < now) / (now - begin - stopped)
    crowd.open = False
    _, late = await asyncio.wait(tasks, timeout=_END_S)
    if late:
        crowd.faults["clients still wait"] += len(late)
    for task in late:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    crowd.open = True
    return Phase(sent, complete, memory, files, crowd.counts - before, stopped)


def clients_of(crowd: Crowd, connections: int, places: int) -> list[Any]:
    """Ten times what may run and wait ask patiently; of the others a half is mute, and the rest slow or oversized."""
    asking = min(20 * places, connections * 3 // 4)
    others = connections - asking
    kinds = [crowd.mute] * (others // 2) + [crowd.oversized] * (others // 20) + [crowd.slow] * (places // 4)
    return [crowd.patient(0.05) for _ in range(connections - len(kinds))] + [kind() for kind in kinds]


def agree(ends: dict[str, str], requests: dict[str, list[str]]) -> bool:
    """Whether clients and server tell the same of every request that was accepted: `ends` by the crowd's words, and
    `requests` by all the ends that the server saw, by name."""
    theirs = {name for name in requests if name.startswith("patient-")}
    once = all(len(seen) == 1 for seen in requests.values())
    whole = all(requests.get(name) == ["length"] for name, end in ends.items() if end == "ended")
    return once and whole and theirs == set(ends)


def held(crowd: Crowd, alone: Phase, overloaded: Phase, server: dict[str, Any], ceiling: float) -> dict[str, bool]:
    memory = overloaded.memory
    quarter = max(len(memory) // 4, 1)
    before, after = statistics.median(memory[quarter : 2 * quarter]), statistics.median(memory[-quarter:])
    return {
        "memory is flat": after <= 1.05 * before + _GROWTH_MB,
        "the maximum is one": alone.complete >= 0.75 * ceiling and not alone.counts["refused with 429"],
        "goodput": overloaded.sent >= 0.9 * alone.sent and overloaded.complete >= 0.9 * alone.complete,
        "each ended once": server["accepted"] == server["ended"] > 0 and server["twice"] == 0,
        "both sides agree": agree(crowd.ends, server["requests"]),
        "no faults": not crowd.faults,
        "some were refused": overloaded.counts["refused with 429"] > 0,
        "mute ones were closed": overloaded.counts["mute connections that were closed"] > 0,
        "no connection stayed": server["files"] <= server["files_before"] + _SPARE_FILES,
    }


@contextmanager
def simulated(args: argparse.Namespace):
    """The process of a simulated server, and its port."""
    pause = min(max(15 * args.minutes, 3.0), 20.0)
    sizes = {"max-pause": pause, "places": args.places, "queue": args.places, "step-ms": args.step_ms}
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    paths = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    server = subprocess.Popen(
        [sys.executable, "-m", "soak.simserver", *options],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert server.stdout is not None
    try:
        yield server, int(server.stdout.readline())
    finally:
        server.kill()
        server.wait()


async def both(crowd: Crowd, args: argparse.Namespace, pid: int) -> tuple[Phase, Phase, int]:
    """Without the crowd, with it, and the server's open files after it."""
    seconds = 60 * args.minutes
    alone = [crowd.patient() for _ in range(2 * args.places)]
    first = await phase(crowd, alone, max(seconds / 5, 6.0), pid)
    second = await phase(crowd, clients_of(crowd, args.connections, args.places), seconds, pid)
    await asyncio.sleep(1.0)
    return first, second, open_files(pid)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="soak.overload")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--places", type=int, default=64, help="requests that run at once, and as many that wait")
    parser.add_argument("--step-ms", type=float, default=100.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with simulated(args) as (process, port):
        crowd, before = Crowd(port, args.seed, body, _LONGEST_WAIT_S), open_files(process.pid)
        alone, overloaded, files = asyncio.run(both(crowd, args, process.pid))
        process.send_signal(signal.SIGTERM)
        server = json.loads(process.stdout.readline()) | {"files_before": before, "files": files}
    ceiling = 1000 * args.places / args.step_ms
    found = held(crowd, alone, overloaded, server, ceiling)
    del server["requests"]
    rates = {"ceiling_tok_s": ceiling}
    for name, part in (("alone", alone), ("overloaded", overloaded)):
        rates |= {f"{name}_tok_s": round(part.sent, 1), f"{name}_complete_tok_s": round(part.complete, 1)}
    memory = overloaded.memory
    memories = {"first_mb": round(memory[0], 1), "last_mb": round(memory[-1], 1), "most_mb": round(max(memory), 1)}
    stopped = round(alone.stopped + overloaded.stopped, 1)
    told = {"stopped_s": stopped, "connections": overloaded.connections, "server": server, **memories, **crowd.counts}
    print(json.dumps({"held": found, **rates, **told, "faults": crowd.faults}))
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
