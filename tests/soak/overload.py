"""`python -m soak.overload --minutes 5`: far more clients than places, and those that a server must not trust.

First as many clients as there are places, then ten times as many as may run and wait, of which some leave in the
middle; others read slowly or not at all, open connections and say nothing, stop in a head or a body, or send far too
much. Memory must stay flat, goodput at 90 % of what it was without the crowd, refusals be 429 with a retry-after, and
all that was accepted end once. The last line of stdout is JSON; the exit status says whether all of it held.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
_END_S = 60.0  # for what was accepted to end
_LONGEST_WAIT_S = 5.0
_GROWTH_MB = 24  # that is no leak, and 5 % beside it
_OVERSIZED = 4 << 20


class Crowd:
    """Clients of one server, and what became of them."""

    def __init__(self, port: int, seed: int) -> None:
        self.port, self.rng = port, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.open = True

    async def patient(self, leaves: float = 0.0) -> None:
        """Asks again and again; waits as it is told; a part `leaves` in the middle."""
        await asyncio.sleep(self.rng.random())
        while self.open:
            try:
                wait = await self.ask(self.rng.random() < leaves)
            except (OSError, asyncio.IncompleteReadError) as error:
                self.faults[f"{type(error).__name__}: {error}"] += 1
                wait = 1.0
            await self.rest(wait)

    async def rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.open and time.monotonic() < end:
            await asyncio.sleep(min(0.5, seconds))

    async def ask(self, leaves: bool) -> float:
        """One request to its end; seconds until the next."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            tokens = self.rng.randint(20, 60)
            writer.write(request(tokens, self.rng.randint(1, 200)))
            status, headers = await head(reader)
            if status != 200:
                return self.refused(status, headers)
            self.counts["accepted"] += 1
            await self.read(reader, tokens, leaves)
            return 0.0
        finally:
            writer.close()

    def refused(self, status: int, headers: dict[str, str]) -> float:
        self.counts[f"refused with {status}"] += 1
        told = headers.get("retry-after", "")
        if status != 429 or not told.isdecimal() or int(told) < 1:
            self.faults[f"status {status}, retry-after {told!r}"] += 1
        return min(float(told or 1), _LONGEST_WAIT_S) * self.rng.uniform(1.0, 1.5)

    async def read(self, reader: asyncio.StreamReader, tokens: int, leaves: bool) -> None:
        whole, events = b"", 0
        while piece := await reader.read(1 << 14):
            whole += piece
            events = whole.count(b'"text"')
            if leaves and events > tokens // 2:
                self.counts["left"] += 1
                return
        if b'"error"' in whole or whole.count(b"data: [DONE]") != 1 or whole.count(b'"length"') != 1:
            self.faults["an answer without its one end"] += 1
        self.counts["ended"] += 1

    async def slow(self) -> None:
        """Reads a little at a time, or nothing, of a long answer."""
        await asyncio.sleep(self.rng.random())
        while self.open:
            with suppress(OSError, asyncio.IncompleteReadError):
                own = socket.socket()
                own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                own.setblocking(False)
                await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", self.port))
                reader, writer = await asyncio.open_connection(sock=own, limit=1 << 10)
                writer.write(request(1500, 10, logprobs=5))
                self.counts["slow readers"] += 1
                if (await head(reader))[0] == 200 and self.rng.random() < 0.5:
                    while self.open and await reader.read(64):
                        await self.rest(0.5)
                await self.rest(10.0)
                writer.transport.abort()
            await self.rest(1.0)

    async def mute(self) -> None:
        """Opens a connection and says nothing, or half of a head, or half of a body."""
        words = (b"", b"POST /v1/completions HTTP/1.1\r\nhost: loc", request(5, 1000)[:-300])
        while self.open:
            with suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(self.rng.choice(words))
                self.counts["mute connections"] += 1
                while self.open and await asyncio.wait_for(reader.read(1 << 12), 60):
                    pass
                self.counts["mute connections that were closed"] += self.open
                writer.close()
            await self.rest(1.0)

    async def oversized(self) -> None:
        """Sends more than it may."""
        while self.open:
            with suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(request(5, _OVERSIZED))
                status, _ = await asyncio.wait_for(head(reader), 60)
                self.counts[f"oversized: {status}"] += 1
                if status != 413:
                    self.faults[f"an oversized body had status {status}"] += 1
                writer.close()
            await self.rest(5.0)


def request(tokens: int, prompt: int, **more: Any) -> bytes:
    asked = {"prompt": "a" * prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True, **more}
    body = json.dumps(asked).encode()
    lines = "POST /v1/completions HTTP/1.1", "host: localhost", "connection: close", "content-type: application/json"
    return "\r\n".join((*lines, f"content-length: {len(body)}", "", "")).encode() + body


async def head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    pairs = (line.split(":", 1) for line in lines[1:] if ":" in line)
    return int(lines[0].split()[1]), {name.lower(): value.strip() for name, value in pairs}


async def tokens_out(port: int) -> int:
    """Tokens that went out, but for those of answers that the server broke off: who leaves wastes his own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /tokens HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    reply = await reader.read()
    writer.close()
    return int(reply.rsplit(b"\r\n", 1)[1])


async def phase(crowd: Crowd, clients: list[Any], seconds: float, pid: int) -> tuple[float, list[float]]:
    """Let clients in for some seconds: tokens a second that were of use, and the server's memory, in MB, meanwhile."""
    tasks = [asyncio.ensure_future(client) for client in clients]
    warm = min(seconds / 4, 10.0)
    await asyncio.sleep(warm)
    begin, had, memory = time.monotonic(), await tokens_out(crowd.port), []
    while time.monotonic() < begin + seconds - warm:
        memory.append(_rss(pid))
        await asyncio.sleep(0.25)
    rate = (await tokens_out(crowd.port) - had) / (time.monotonic() - begin)
    crowd.open = False
    _, late = await asyncio.wait(tasks, timeout=_END_S)
    if late:
        crowd.faults["clients still wait"] += len(late)
    for task in late:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    crowd.open = True
    return rate, memory


def _rss(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def clients_of(crowd: Crowd, connections: int, places: int) -> list[Any]:
    """Ten times what may run and wait ask patiently; of the others a half is mute, and the rest slow or oversized."""
    asking = min(20 * places, connections * 3 // 4)
    others = connections - asking
    kinds = [crowd.mute] * (others // 2) + [crowd.oversized] * (others // 20) + [crowd.slow] * (places // 4)
    return [crowd.patient(0.05) for _ in range(connections - len(kinds))] + [kind() for kind in kinds]


def held(crowd: Crowd, rates: tuple[float, float], memory: list[float], server: dict[str, Any]) -> dict[str, bool]:
    quarter = max(len(memory) // 4, 1)
    before, after = statistics.median(memory[quarter : 2 * quarter]), statistics.median(memory[-quarter:])
    return {
        "memory is flat": after <= 1.05 * before + _GROWTH_MB,
        "goodput": rates[1] >= 0.9 * rates[0],
        "each ended once": server["accepted"] == server["ended"] > 0 and server["twice"] == 0,
        "no faults": not crowd.faults,
        "some were refused": crowd.counts["refused with 429"] > 0,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="soak.overload")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--places", type=int, default=64, help="requests that run at once, and as many that wait")
    parser.add_argument("--step-ms", type=float, default=100.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pause = min(max(15 * args.minutes, 3.0), 20.0)
    sizes = [
        "--max-pause",
        str(pause),
        "--places",
        str(args.places),
        "--queue",
        str(args.places),
        "--step-ms",
        str(args.step_ms),
    ]
    command = [sys.executable, "-m", "soak.simserver", *sizes]
    paths = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert server.stdout is not None
    try:
        crowd = Crowd(int(server.stdout.readline()), args.seed)
        alone = [crowd.patient() for _ in range(2 * args.places)]
        rates, memory = asyncio.run(_both(crowd, alone, args, server.pid))
        server.send_signal(signal.SIGTERM)
        record = json.loads(server.stdout.readline())
        server.wait(60)
    finally:
        server.kill()
    found = held(crowd, rates, memory, record)
    told = {"alone_tok_s": round(rates[0], 1), "overloaded_tok_s": round(rates[1], 1), "server": record}
    memories = {"first_mb": round(memory[0], 1), "last_mb": round(memory[-1], 1), "most_mb": round(max(memory), 1)}
    print(json.dumps({"held": found, **told, **memories, **crowd.counts, "faults": crowd.faults}))
    return 0 if all(found.values()) else 1


async def _both(crowd: Crowd, alone: list[Any], args: Any, pid: int) -> tuple[tuple[float, float], list[float]]:
    seconds = 60 * args.minutes
    first, _ = await phase(crowd, alone, max(seconds / 5, 6.0), pid)
    second, memory = await phase(crowd, clients_of(crowd, args.connections, args.places), seconds, pid)
    return (first, second), memory


if __name__ == "__main__":
    sys.exit(main())
