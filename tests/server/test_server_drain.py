"""Being told to end: running answers go on, health is red, new requests are sent elsewhere, and time is bounded."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from serving import Server, until

HERE = Path(__file__).parent
STREAM = {"prompt": "a", "stream": True, "ignore_eos": True, "max_tokens": 60}

SERVE = """
import sys, uvicorn
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/.."]
from serving import FakeClient, byte_tokenizer, engine_info
import msgspec
from ridgeline.config import EngineConfig, ServerConfig
from ridgeline.server.app import create_app, listen
from ridgeline.server.gentle import GentleServer
tokenizer = byte_tokenizer()
client = FakeClient(tokenizer)
client.info = msgspec.structs.replace(client.info, max_requests=64)
client.ledger.info = client.info
client.pace = 0.05
config = ServerConfig(EngineConfig("fake", backend="reference"), port=0)
app, listener = create_app(client, tokenizer, config, "fake"), listen(config)
settings = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
server = GentleServer(settings, app.state.hub, float(sys.argv[2]))
listener.listen(256)
print(listener.getsockname()[1], flush=True)
server.run(sockets=[listener])
"""


async def request(port: int, method: str, path: str, body: dict | None = None) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body).encode() if body is not None else b""
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    try:
        reply = await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()
    return int(reply.split(b" ", 2)[1]) if reply else 0, reply


def served(timeout: float, then) -> tuple[object, int]:
    """What `then(port, process)` finds out, and the exit status of the server it ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(HERE), str(timeout)], stdout=subprocess.PIPE, text=True
    )
    try:
        port = int(process.stdout.readline())
        found = asyncio.run(then(port, process))
        return found, process.wait(60)
    finally:
        process.kill()
        process.stdout.close()


def test_64_streams_and_none_is_lost():
    async def end(port, process):
        streams = [asyncio.ensure_future(request(port, "POST", "/v1/completions", STREAM)) for _ in range(64)]
        while (await request(port, "GET", "/debug/requests/64"))[0] != 200:  # the last of them runs
            await asyncio.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        while (health := await request(port, "GET", "/health"))[0] == 200:
            await asyncio.sleep(0.005)
        refused = await request(port, "POST", "/v1/completions", STREAM)
        assert not any(s.done() for s in streams)
        return health, refused, await asyncio.gather(*streams)

    (health, refused, answers), status = served(60, end)
    assert health[0] == refused[0] == 503 and b"retry-after: 1\r\n" in refused[1]
    assert {answer[0] for answer in answers} == {200}
    assert all(answer[1].count(b'"text"') >= 50 and b"data: [DONE]" in answer[1] for answer in answers)
    assert all(answer[1].count(b'"finish_reason":"length"') == 1 for answer in answers)
    assert status == 0


def test_an_idle_server_ends_at_once():
    async def end(port, process):
        assert (await request(port, "GET", "/health"))[0] == 200
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        return time.monotonic() - begin

    took, status = served(60, end)
    assert took < 20 and status == 0


def test_time_is_bounded_and_a_second_signal_ends_it():
    async def end(port, process, signals):
        long = STREAM | {"max_tokens": 190}
        asking = asyncio.ensure_future(request(port, "POST", "/v1/completions", long))
        await asyncio.sleep(0.5)
        for number in signals:
            process.send_signal(number)
            await asyncio.sleep(0.05)
        return (await asking)[1]

    for timeout, signals in ((0.2, [signal.SIGTERM]), (60, [signal.SIGTERM, signal.SIGINT])):
        reply, status = served(timeout, lambda port, process, s=signals: end(port, process, s))
        assert status == 0 and b"shutting down" in reply and b"data: [DONE]" in reply


def test_a_request_whose_body_comes_after_the_end_began_is_refused():
    server = Server.new()
    server.client.gate.clear()

    async def drain():
        done = asyncio.Event()
        async with server.running():
            hub = server.app.state.hub
            first = asyncio.ensure_future(server.ask("POST", "/v1/completions", {"prompt": "a"}))
            await until(lambda: bool(server.client.submitted))
            hub.drain(60, done.set)
            await until(lambda: hub.problem is not None)
            late = await server.ask("POST", "/v1/completions", {"prompt": "a"})
            health = await server.ask("GET", "/health")
            assert not done.is_set()
            server.client.gate.set()
            answer = await first
            assert done.is_set()
            return answer, late, health

    answer, late, health = asyncio.run(drain())
    assert answer.status == 200 and health.status == 503 and "shutting down" in health.headers["x-ridgeline-reason"]
    assert late.status == 503 and late.headers["retry-after"] == "1" and late.headers["connection"] == "close"
    assert "x-should-retry" not in late.headers
