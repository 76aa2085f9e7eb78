"""What waits for a slow reader is bounded, and cancelling waits for no parse."""

from __future__ import annotations

import asyncio
import time

import pytest
from serving import FakeClient, Server, byte_tokenizer, until

from ridgeline.engine.params import SamplingParams
from ridgeline.errors import EngineFailed
from ridgeline.server import hub as hubs
from ridgeline.server.hub import Hub, Job


def test_a_reader_too_slow_loses_the_request_and_is_told(monkeypatch):
    monkeypatch.setattr(hubs, "MAX_UNREAD", 500)
    client = FakeClient(byte_tokenizer(), answer="z" * 150)
    client.pace = 0.001

    async def read_late() -> int:
        hub = Hub(client)
        hub.start()
        jobs = [Job([1, 2], SamplingParams(seed=i)) for i in range(2)]
        characters = 0
        try:
            async with hub.stream() as stream:
                await hub.run(lambda: stream.submit(jobs))
                await until(lambda: client.idle)
                with pytest.raises(EngineFailed, match="too slowly"):
                    async for batch in stream.batches():
                        characters += sum(len(e.delta.text) for e in batch)
        finally:
            hub.stop()
        return characters

    assert 20 < asyncio.run(read_late()) < 40  # 17 bytes a token, and the one over the bound
    assert {finish for _, _, finish in client.finished} == {"cancelled"}


def test_cancels_do_not_queue_behind_slow_parsing(monkeypatch):
    server = Server.new()
    server.client.gate.clear()

    async def leave():
        async with server.running():
            hub = Hub(server.client)
            hub._loop = asyncio.get_running_loop()
            async with hub.stream() as stream:
                await hub.run(lambda: stream.submit([Job([1], SamplingParams())]))
                busy = [asyncio.ensure_future(hub.run(lambda: time.sleep(0.5))) for _ in range(hubs.THREADS)]
                begin = time.monotonic()
            assert server.client.cancelled and time.monotonic() - begin < 0.3
            await asyncio.gather(*busy)
            hub._threads.shutdown()

    asyncio.run(leave())
