"""A crowd of clients of one server: patient ones, and those that a server must not trust.

Each request has a name of its own and ends in a word that the crowd keeps, so that both sides can be compared when all
is over. Must not know what the server runs, and of a body only what it takes to judge the answer.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

OVERSIZED = 4 << 20
_HEAD_S = 60.0  # for a status that is due at once
Body = dict[str, Any]


class Connection:
    """One client's connection: opened when it is needed, and kept while the server keeps it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def post(self, body: bytes, name: str) -> tuple[int, dict[str, str]]:
        """The status and headers of a request's answer; once more where a kept connection turns out to be closed."""
        kept = self.reader is not None and not self.reader.at_eof()
        if not kept:
            self.close()
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        assert self.reader is not None and self.writer is not None
        self.writer.write(head_of(name, len(body)) + body)
        try:
            return await head(self.reader)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.close()
            if not kept:
                raise
        return await self.post(body, name)

    async def pieces(self, headers: dict[str, str]) -> AsyncIterator[bytes]:
        """The body of an answer as it comes. IncompleteReadError where it breaks off."""
        assert self.reader is not None
        if "content-length" in headers:
            yield await self.reader.readexactly(int(headers["content-length"]))
            return
        while size := int((await self.reader.readuntil(b"\r\n")).strip(), 16):
            yield await self.reader.readexactly(size)
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)

    def close(self, rudely: bool = False) -> None:
        if self.writer is not None:
            self.writer.transport.abort() if rudely else self.writer.close()
        self.reader = self.writer = None


class Crowd:
    """Clients of the server at `port`, and what became of them. `body(rng)` draws what the patient ones ask for, with
    max_tokens and ignore_eos; nobody waits much longer than `longest_wait` seconds, whatever it is told.
    """

    def __init__(self, port: int, seed: int, body: Callable[[random.Random], Body], longest_wait: float) -> None:
        self.port, self.rng, self._body, self._longest_wait = port, random.Random(seed), body, longest_wait
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.ends: dict[str, str] = {}  # of what was accepted: "ended" or "left", by name
        self.complete: list[tuple[float, int]] = []  # when an answer was there to its end, and its tokens
        self.open = True
        self._names = 0

    async def patient(self, leaves: float = 0.0) -> None:
        """Asks again and again; waits as it is told; a part `leaves` in the middle."""
        await asyncio.sleep(self.rng.random())
        connection = Connection(self.port)
        while self.open:
            try:
                wait = await self.ask(connection, self.rng.random() < leaves)
            except (OSError, asyncio.IncompleteReadError, ValueError) as error:
                self.faults[f"{type(error).__name__}: {error}"] += 1
                connection.close()
                wait = 1.0
            await self.rest(wait)
        connection.close()

    async def rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.open and time.monotonic() < end:
            await asyncio.sleep(min(0.5, seconds))

    async def ask(self, connection: Connection, leaves: bool = False) -> float:
        """One request to its end; seconds until the next."""
        body = self._body(self.rng)
        name = self.name("patient")
        status, headers = await connection.post(encoded({"stream": True, **body}), name)
        if status == 200:
            await self.read(connection, headers, body, name, leaves)
            return 0.0
        async for _ in connection.pieces(headers):
            pass
        return self.refused(status, headers)

    def name(self, kind: str) -> str:
        self._names += 1
        return f"{kind}-{self._names}"

    def refused(self, status: int, headers: dict[str, str]) -> float:
        self.counts[f"refused with {status}"] += 1
        told = headers.get("retry-after", "")
        if status != 429 or not told.isdecimal() or int(told) < 1:
            self.faults[f"status {status}, retry-after {told!r}"] += 1
        return min(float(told or 1), self._longest_wait) * self.rng.uniform(1.0, 1.5)

    async def read(self, connection: Connection, headers: dict[str, str], body: Body, name: str, leaves: bool) -> None:
        self.counts["accepted"] += 1
        whole, n = b"", body.get("n", 1)
        async for piece in connection.pieces(headers):
            whole += piece
            if leaves and whole.count(b'"text"') > body["max_tokens"] * n // 2:
                self.counts["left"] += 1
                self.ends[name] = "left"
                return connection.close(rudely=self.rng.random() < 0.5)
        ends = whole.count(b'"finish_reason":"length"'), whole.count(b"data: [DONE]")
        if b'"error"' in whole or ends != (n, 1):
            self.faults["an answer without its one end"] += 1
        self.counts["ended"] += 1
        self.ends[name] = "ended"
        self.complete.append((time.monotonic(), body["max_tokens"] * n))

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
                data = encoded({"prompt": "a" * 10, "max_tokens": 1500, "logprobs": 5, "stream": True})
                writer.write(head_of(self.name("slow"), len(data)) + data)
                self.counts["slow readers"] += 1
                if (await head(reader))[0] == 200 and self.rng.random() < 0.5:
                    self.counts["slow readers that were accepted"] += 1
                    while self.open and await reader.read(64):
                        await self.rest(0.5)
                await self.rest(10.0)
                writer.transport.abort()
            await self.rest(1.0)

    async def mute(self) -> None:
        """Opens a connection and says nothing, or half of a head, or half of a body, or no more after a request."""
        asked = encoded({"prompt": "a" * 1000, "max_tokens": 5, "stream": True})
        while self.open:
            whole = head_of(self.name("mute"), len(asked)) + asked
            with suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                said = self.rng.choice((b"", whole[:20], whole[:-300], whole))
                writer.write(said)
                if said is whole:
                    writer.write_eof()  # half open: it still listens
                self.counts["mute connections"] += 1
                while self.open and await asyncio.wait_for(reader.read(1 << 12), _HEAD_S):
                    pass
                self.counts["mute connections that were closed"] += self.open
                writer.close()
            await self.rest(1.0)

    async def oversized(self) -> None:
        """Sends more than it may, of a length that it tells or not."""
        while self.open:
            with suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                if self.rng.random() < 0.5:
                    writer.write(head_of(self.name("oversized"), OVERSIZED) + b" " * OVERSIZED)
                else:
                    piece = b"%x\r\n%b\r\n" % (1 << 16, b" " * (1 << 16))
                    writer.write(head_of(self.name("oversized")) + piece * (OVERSIZED >> 16) + b"0\r\n\r\n")
                status, _ = await asyncio.wait_for(head(reader), _HEAD_S)
                self.counts[f"oversized: {status}"] += 1
                if status != 413:
                    self.faults[f"an oversized body had status {status}"] += 1
                writer.close()
            await self.rest(5.0)


def encoded(body: Body) -> bytes:
    return json.dumps({"ignore_eos": True, **body}).encode()


def head_of(name: str, length: int | None = None) -> bytes:
    """A request's head; without a length its body comes in chunks."""
    sized = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    lines = "POST /v1/completions HTTP/1.1", "host: localhost", "content-type: application/json", sized
    return "\r\n".join((*lines, f"x-request-id: {name}", "", "")).encode()


async def head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    pairs = (line.split(":", 1) for line in lines[1:] if ":" in line)
    return int(lines[0].split()[1]), {name.lower(): value.strip() for name, value in pairs}
