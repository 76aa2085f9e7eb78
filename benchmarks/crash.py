"""Crashes: what clients of `ridgeline serve` see when the engine process is killed, stopped or broken under streams.

For each signal: N streams run, the signal comes when each has had some tokens; printed are the seconds until /health is
red and until some stream has a new token again, and how many texts are those of the same requests alone.
The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIGNALS = ("SIGKILL", "SIGSTOP", "SIGSEGV")
_POLL_S = 0.02
_LONGEST_S = 600


class Stream:
    """One streamed completion: its text, and when each piece of it came."""

    def __init__(self, port: int, body: dict[str, Any]) -> None:
        self.port, self.body = port, {**body, "stream": True}
        self.text, self.times = "", []

    def run(self) -> Stream:
        """To the end of the stream; RuntimeError where that is not a proper one."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_LONGEST_S)
        connection.request("POST", "/v1/completions", json.dumps(self.body), {"content-type": "application/json"})
        finish = None
        for line in connection.getresponse():
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            self.times.append(time.monotonic())
            self.text += event["choices"][0]["text"]
            finish = event["choices"][0]["finish_reason"]
        connection.close()
        if finish is None:
            raise RuntimeError("a stream broke off")
        return self


class Health:
    """Asks /health all the time, and keeps when its answer changed: (when, status)."""

    def __init__(self, port: int) -> None:
        self.changes: list[tuple[float, int]] = []
        self._port, self._stop = port, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Health:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_LONGEST_S)
        while not self._stop.wait(_POLL_S):
            connection.request("GET", "/health")
            response = connection.getresponse()
            response.read()
            if not self.changes or self.changes[-1][1] != response.status:
                self.changes.append((time.monotonic(), response.status))
        connection.close()

    def first(self, red: bool, after: float) -> float:
        """When it first was red, or not, after some time; waits for it."""
        end = time.monotonic() + _LONGEST_S
        while time.monotonic() < end:
            for when, status in list(self.changes):
                if when >= after and (status != 200) == red:
                    return when
            time.sleep(_POLL_S)
        raise RuntimeError(f"health did not become {'red' if red else 'green'}")


def requests(count: int, tokens: int) -> list[dict[str, Any]]:
    """Bodies of completions that all differ, sampled with seeds."""
    return [
        {"prompt": f"Story number {i}: once upon a time", "max_tokens": tokens, "seed": i, "temperature": 0.8,
         "ignore_eos": True}
        for i in range(count)
    ]  # fmt: skip


def together(port: int, bodies: list[dict[str, Any]], crash: str, pid: int, after: int) -> dict[str, Any]:
    """All bodies at once, with a signal for process `pid` when each stream has had `after` tokens."""
    streams = [Stream(port, body) for body in bodies]
    with Health(port) as health, ThreadPoolExecutor(len(streams)) as threads:
        running = [threads.submit(s.run) for s in streams]
        while min(len(s.times) for s in streams) < after:
            if any(r.done() for r in running):
                raise RuntimeError("a stream ended before the signal; ask for more tokens")
            time.sleep(0.005)
        begin = time.monotonic()
        os.kill(pid, getattr(signal, crash))
        red = health.first(True, begin)
        green = health.first(False, red)
        texts = [r.result().text for r in running]
    again = min(t for s in streams for t in s.times if t > red)
    slowest = max(min(t for t in s.times if t > red) for s in streams)
    seconds = {"red_s": red - begin, "green_s": green - begin, "serving_s": again - begin, "all_s": slowest - begin}
    return {"texts": texts, **{name: round(value, 3) for name, value in seconds.items()}}


@contextmanager
def server(model: str, options: list[str]) -> Iterator[tuple[int, int]]:
    """A server of its own: its port and its process."""
    command = [sys.executable, "-m", "ridgeline", "serve", model, "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit("the server did not start")
        yield int(line.rsplit(":", 1)[1]), process.pid
    finally:
        process.terminate()
        process.wait(30)


def child_of(pid: int) -> int:
    """The engine process of a server: its only child."""
    (child,) = (c for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split())
    return int(child)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Options of `ridgeline serve` follow after --.")
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--after", type=int, default=8, help="tokens that each stream has had when the signal comes")
    parser.add_argument("--signals", default=",".join(SIGNALS))
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args, options = parser.parse_args(sys.argv[1:cut]), sys.argv[cut + 1 :]
    bodies, record = requests(args.streams, args.tokens), {}
    with server(args.model, options) as (port, pid):
        alone = [Stream(port, body).run().text for body in bodies]
        for crash in args.signals.split(","):
            seen = together(port, bodies, crash, child_of(pid), args.after)
            same = sum(a == b for a, b in zip(alone, seen.pop("texts"), strict=True))
            record[crash] = {"texts_same": same, **seen}
            print(f"{crash}: {same} of {len(bodies)} texts as alone; {json.dumps(seen)}", file=sys.stderr)
    print(json.dumps({"model": args.model, "streams": args.streams, **record}))
    return 0 if all(r["texts_same"] == len(bodies) for r in record.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
