"""Streams: what a streamed token costs the server, and how much of the engine's throughput reaches clients.

Each round plays the same prompts on each route of a live `ridgeline serve`, all streams at once, and offline with
`LLM.generate` on the same settings, in turn. Printed per route, medians of the rounds: generated tokens a second, CPU
time of the server process (the engine's has its own) and of the client per token, and the throughput as a share of
generate's: as it is, and with the client's own CPU time taken off. The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

from crash import server
from ridgeline.engine.params import SamplingParams
from ridgeline.llm import LLM

_END = b"0\r\n\r\n"  # of a chunked body
_LONGEST_S = 300.0

Figures = dict[str, float]


def bodies(route: str, prompts: list[str], tokens: int) -> list[bytes]:
    """Requests of a route, as they go over the wire."""
    made = []
    for prompt in prompts:
        body: dict[str, Any]
        if route == "/generate_stream":
            body = {"inputs": prompt, "parameters": {"max_new_tokens": tokens, "do_sample": False}}
        else:
            asked = {"messages": [{"role": "user", "content": prompt}]} if "chat" in route else {"prompt": prompt}
            body = {**asked, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        data = json.dumps(body).encode()
        head = f"POST {route} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        made.append(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    return made


def play(port: int, requests: list[bytes]) -> int:
    """All at once, each on a connection of its own, to their ends; the events that came. As little work as may be."""
    events, selector = 0, selectors.DefaultSelector()
    for request in requests:
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(request)
        selector.register(sock, selectors.EVENT_READ)
    end = time.monotonic() + _LONGEST_S
    while selector.get_map():
        if time.monotonic() > end:
            raise RuntimeError("the streams did not end")
        for key, _ in selector.select(1.0):
            data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
            events += data.count(b"data: {")
            if data.endswith(_END):
                selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
            elif not data:
                raise RuntimeError("a stream broke off")
    return events


def cpu_of(pid: int) -> float:
    """CPU seconds of a process so far, all of its threads."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def own_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def served(port: int, pid: int, requests: list[bytes], tokens: int) -> Figures:
    """One play of a route."""
    count = len(requests) * tokens
    server_cpu, client_cpu, begin = cpu_of(pid), own_cpu(), time.perf_counter()
    events = play(port, requests)
    seconds, client = time.perf_counter() - begin, own_cpu() - client_cpu
    return {
        "tokens_s": count / seconds,
        "discounted_s": count / (seconds - client / (os.cpu_count() or 1)),
        "server_us": (cpu_of(pid) - server_cpu) / count * 1e6,
        "client_us": client / count * 1e6,
        "events": events,
    }


class Offline:
    """`LLM.generate` in a process of its own, which waits for its turn."""

    def __init__(self, model: str, settings: dict[str, Any]) -> None:
        command = [sys.executable, __file__, model, "--offline", json.dumps(settings)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def play(self, prompts: list[str], tokens: int, chat: bool) -> float:
        """Generated tokens a second, of prompts as they are or as chats."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([prompts, tokens, chat]) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def offline(model: str, settings: dict[str, Any]) -> None:
    """The other end of Offline."""
    llm = LLM(model, **settings)
    for line in sys.stdin:
        prompts, tokens, chat = json.loads(line)
        params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
        begin = time.perf_counter()
        asked = [llm.chat_prompt([{"role": "user", "content": p}]) for p in prompts] if chat else prompts
        llm.generate(asked, params)
        print(len(prompts) * tokens / (time.perf_counter() - begin), flush=True)


def prompts_of(count: int, round: int) -> list[str]:
    """That differ from each other and from round to round, of about 60 tokens."""
    story = "The keeper of the lighthouse wrote down what he saw: ships, birds, the colours of the sea and wind. " * 2
    return [f"Round {round}, story {i}. {story}" for i in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Options of `ridgeline serve` follow after --.")
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--routes", default="/v1/completions,/v1/chat/completions,/generate_stream")
    parser.add_argument("--settings", default="{}", help="of the engine offline, as JSON; the server's follow after --")
    parser.add_argument("--offline", help=argparse.SUPPRESS)
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args, options = parser.parse_args(sys.argv[1:cut]), sys.argv[cut + 1 :]
    if args.offline:
        return offline(args.model, json.loads(args.offline))
    routes = args.routes.split(",")
    seen: dict[str, list[Figures]] = {route: [] for route in routes}
    alone = Offline(args.model, {"context": 8192, **json.loads(args.settings)})
    with server(args.model, options) as (port, pid):
        for round in range(-1, args.rounds):  # the first warms up
            best = 0.0
            for route in routes:
                # No route finds what another has left in the prefix cache, and generate runs right beside each.
                prompts = [f"{route} {p}" for p in prompts_of(args.streams, round)]
                best = alone.play(prompts, args.tokens, "chat" in route)
                figures = served(port, pid, bodies(route, prompts, args.tokens), args.tokens)
                figures |= {"share": figures["tokens_s"] / best, "discounted": figures["discounted_s"] / best}
                if round >= 0:
                    seen[route].append(figures | {"generate_s": best})
    alone.close()
    record = {route: {k: statistics.median(f[k] for f in all) for k in all[0]} for route, all in seen.items()}
    for route, f in record.items():
        print(
            f"{route}: {f['tokens_s']:.0f} tok/s, {f['share']:.1%} of generate's {f['generate_s']:.0f} "
            f"({f['discounted']:.1%} without the client); server {f['server_us']:.0f} us and client "
            f"{f['client_us']:.0f} us a token, {f['events']:.0f} events",
            file=sys.stderr,
        )
    print(json.dumps({"model": args.model, "streams": args.streams, "tokens": args.tokens, "routes": record}))


if __name__ == "__main__":
    main()
