"""What comes while a stream's reader sleeps is said at once; whatever is not that simple is the reader's, in order."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable

import pytest
from serving import FakeClient, Server, byte_tokenizer, until

from ridgeline.engine.params import SamplingParams
from ridgeline.server.hub import Hub
from ridgeline.server.jobs import Event, Job

TEXT = "".join(chr(ord("a") + i % 26) for i in range(100))


class Said:
    """What was said: all in order, and how much of it by the reader itself. `before` runs before each saying."""

    def __init__(self, before: Callable[[int], Awaitable[None]] | None = None) -> None:
        self.text, self.times, self.read = "", 0, 0
        self._before = before

    async def say(self, batch: list[Event]) -> None:
        self.times += 1
        if self._before is not None:
            await self._before(self.times)
        self.text += "".join(e.delta.text for e in batch)


def listened(said: Said, then: Callable[[FakeClient, asyncio.Task[None]], Awaitable[None]] | None = None) -> FakeClient:
    """An answer's whole life, from when its reader sleeps: to its end, or to that of `then`, which has the client and
    the reader."""
    client = FakeClient(byte_tokenizer(), answer=TEXT)
    client.pace = 0.001
    client.gate.clear()

    async def live() -> None:
        hub = Hub(client)
        hub.start()

        async def read() -> None:
            async with hub.stream() as stream:
                await hub.run(lambda: stream.submit([Job([1], SamplingParams())]))
                async for batch in stream.batches(said.say):
                    said.read += 1
                    await said.say(batch)

        reader = asyncio.ensure_future(read())
        try:
            await until(lambda: any(stream._sleeper is not None for stream in hub._streams))
            client.gate.set()
            if then is not None:
                await then(client, reader)
            await reader
        finally:
            hub.stop()

    asyncio.run(live())
    return client


def test_a_token_wakes_nobody():
    said = Said()
    listened(said)
    assert said.text == TEXT and said.times > 50
    assert said.read <= 5  # the first, the last, and what came while one of them was at work


def test_what_has_to_wait_is_finished_by_the_reader_and_nothing_overtakes_it():
    gate = asyncio.Event()

    async def before(time: int) -> None:
        if time == 5:
            await gate.wait()

    said = Said(before)
    held = []

    async def release(client: FakeClient, reader: asyncio.Task[None]) -> None:
        await until(lambda: said.times == 5 and client.idle)  # all else has come meanwhile
        held.append(said.text)
        gate.set()

    listened(said, release)
    assert TEXT.startswith(held[0]) and len(held[0]) < 50
    assert said.text == TEXT


def test_a_fault_in_saying_is_the_readers():
    async def before(time: int) -> None:
        if time == 5:
            raise ValueError("cannot be said")

    said = Said(before)
    with pytest.raises(ValueError, match="cannot be said"):
        listened(said)
    assert TEXT.startswith(said.text) and said.times == 5


def test_a_reader_who_is_cancelled_while_something_waits_leaves_nothing_behind():
    async def before(time: int) -> None:
        if time == 5:
            await asyncio.Event().wait()

    said, clients = Said(before), []

    async def leave(client: FakeClient, reader: asyncio.Task[None]) -> None:
        clients.append(client)
        await until(lambda: said.times == 5)
        reader.cancel()

    with pytest.raises(asyncio.CancelledError):
        listened(said, leave)
    assert said.times == 5 and len(clients[0].cancelled) == 1


def test_a_stream_is_gone_with_its_request():
    """What it holds is given back then, not when cycles are looked for."""
    server, streams = Server.new(), []

    async def asked() -> list[bool]:
        async with server.running():
            hub = server.app.state.hub
            usual = hub.stream

            def stream(*given):
                made = usual(*given)
                streams.append(weakref.ref(made))
                return made

            hub.stream = stream
            for _ in range(3):
                await server.ask("POST", "/generate_stream", {"inputs": "a"})
            await asyncio.sleep(0.1)  # the pump thread lets go of the last
            return [stream() is None for stream in streams]

    gc.disable()
    try:
        assert asyncio.run(asked())[:2] == [True] * 2
    finally:
        gc.enable()
