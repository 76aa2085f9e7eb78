"""What waits for a slow reader is bounded, and cancelling waits for no parse."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time

import pytest
import uvicorn
from serving import FakeClient, Server, byte_tokenizer, until

from ridgeline.config import EngineConfig, ServerConfig
from ridgeline.engine.params import SamplingParams
from ridgeline.errors import Undelivered
from ridgeline.server import hub as hubs
from ridgeline.server.app import create_app, listen
from ridgeline.server.hub import Hub
from ridgeline.server.jobs import Job


def test_a_reader_too_slow_loses_the_request_and_is_told():
    client = FakeClient(byte_tokenizer(), answer="z" * 150)
    client.pace = 0.001

    async def read_late() -> int:
        hub = Hub(client, max_undelivered=500, max_pause=0.1)
        hub.start()
        jobs = [Job([1, 2], SamplingParams(seed=i)) for i in range(2)]
        characters = 0
        try:
            async with hub.stream() as stream:
                await hub.run(lambda: stream.submit(jobs))
                await until(lambda: client.idle)
                with pytest.raises(Undelivered, match="too slowly"):
                    async for batch in stream.batches():
                        characters += sum(len(e.delta.text) for e in batch)
        finally:
            hub.stop()
        return characters

    assert 20 < asyncio.run(read_late()) < 40  # 17 bytes a token, and the one over the bound
    assert {finish for _, _, finish in client.finished} == {"undelivered"}


def test_what_waits_to_be_read_is_bounded():
    server = Server.new()
    read = threading.Event()
    room = server.client.info.max_requests + server.client.info.queue

    async def crowd():
        async with server.running():
            hub = server.app.state.hub
            reading = [asyncio.ensure_future(hub.run(read.wait)) for _ in range(room)]
            await asyncio.sleep(0)
            refused = await server.ask("POST", "/generate", {"inputs": "x"})
            read.set()
            await asyncio.gather(*reading)
            return refused, await server.ask("POST", "/generate", {"inputs": "x"})

    refused, answer = asyncio.run(crowd())
    assert refused.status == 429 and int(refused.headers["retry-after"]) >= 1 and answer.status == 200


def test_a_reader_who_comes_back_has_the_whole_answer():
    client = FakeClient(byte_tokenizer(), answer="z" * 150)

    async def read_slowly() -> int:
        hub, characters = Hub(client, max_undelivered=500, max_pause=20.0), 0
        hub.start()
        try:
            async with hub.stream() as stream:
                await hub.run(lambda: stream.submit([Job([1, 2], SamplingParams(seed=i)) for i in range(2)]))
                async for batch in stream.batches():
                    await until(lambda: client.paused == {1, 2} or client.idle)
                    characters += sum(len(e.delta.text) for e in batch)
        finally:
            hub.stop()
        return characters

    assert asyncio.run(read_slowly()) == 300
    assert client.pauses >= 2 and {finish for _, _, finish in client.finished} == {"eos_token"}


def test_a_prompt_submitted_during_a_pause_is_paused_too():
    client = FakeClient(byte_tokenizer(), answer="z" * 150)

    async def submit_late() -> None:
        hub = Hub(client, max_undelivered=50, max_pause=20.0)
        hub.start()
        try:
            async with hub.stream() as stream:
                await hub.run(lambda: stream.submit([Job([1], SamplingParams())]))
                await until(lambda: client.paused == {1})
                await hub.run(lambda: stream.submit([Job([2], SamplingParams())]))
                assert client.paused == {1, 2}
        finally:
            hub.stop()

    asyncio.run(submit_late())


def test_over_a_socket_a_reader_who_stops_holds_up_nobody():
    """Its answer pauses while others are served, and ends with its reason; then the connection is closed."""
    client = FakeClient(byte_tokenizer(), answer="z" * 100, context=1 << 20)
    config = ServerConfig(EngineConfig("fake", backend="reference"), port=0, max_undelivered=2000, max_pause=1.0)
    app, listener = create_app(client, byte_tokenizer(), config, "fake-model"), listen(config)
    listener.listen()
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    port = listener.getsockname()[1]
    body = {"prompt": "a", "stream": True, "ignore_eos": True, "max_tokens": 1 << 19}
    stuck = connect(port, body)
    wait(lambda: client.paused)
    (stream,) = app.state.hub._streams
    waiting = len(stream._events)
    status, _ = ask(port, {"prompt": "b"})
    assert status == 200 and len(stream._events) - waiting < 100 and waiting < 300  # of half a million
    wait(lambda: client.finished[-1:] == [(1, 0, "undelivered")])
    wait(lambda: not app.state.hub._streams)  # the system closed the connection: nobody took the error either
    stuck.close()

    begin = time.monotonic()
    late = connect(port, body)
    reply = late.getresponse()
    wait(lambda: client.finished[-1:] == [(3, 0, "undelivered")])
    if time.monotonic() - begin < 20:  # else the system may have closed it meanwhile
        lines = [line for line in reply.read().split(b"\n\n") if line]
        assert lines[-1] == b"data: [DONE]" and json.loads(lines[-2][6:])["error"]["code"] == "undelivered"
    late.close()
    server.should_exit = True
    thread.join(20)


def connect(port: int, body: dict) -> http.client.HTTPConnection:
    """A request by a client that itself buffers little."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.sock = socket.socket()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
    connection.sock.settimeout(60)
    connection.sock.connect(("127.0.0.1", port))
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    return connection


def ask(port: int, body: dict) -> tuple[int, bytes]:
    reply = connect(port, body).getresponse()
    return reply.status, reply.read()


def wait(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


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
