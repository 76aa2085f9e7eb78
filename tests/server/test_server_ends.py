"""Every accepted request ends exactly once: disconnects, refused parts, shutdown, and random sequences of them."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import uvicorn
from serving import Server, until

from ridgeline.server.gentle import GentleServer
from ridgeline.server.hub import THREADS

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "hello"}]
REQUESTS = [
    (CHAT, {"messages": USER}),
    (CHAT, {"messages": USER, "stream": True, "n": 2}),
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 9}),
    ("/v1/completions", {"prompt": "a", "stream": True}),
    ("/generate", {"inputs": "a", "parameters": {"best_of": 2, "do_sample": True}}),
    ("/generate_stream", {"inputs": "a"}),
    ("/", {"inputs": "a", "stream": True}),
]


@pytest.mark.parametrize(("path", "body"), REQUESTS)
def test_a_disconnect_cancels_at_once(path, body):
    server = Server.new()
    server.client.gate.clear()

    async def leave():
        async with server.running():
            answer = await server.ask("POST", path, body, leave=lambda _: bool(server.client.submitted))
            await until(lambda: set(server.client.cancelled) == {s.id for s in server.client.submitted})
            await until(lambda: server.client.idle)
            return answer

    answer = asyncio.run(leave())
    assert answer.status in (0, 200)
    assert Counter(server.client.finished).most_common(1)[0][1] == 1
    assert {finish for _, _, finish in server.client.finished} == {"cancelled"}


@pytest.mark.parametrize(("path", "body"), [r for r in REQUESTS if r[1].get("stream") or r[0] == "/generate_stream"])
def test_a_disconnect_in_the_middle_of_a_stream_cancels(path, body):
    server = Server.new(answer="z" * 150)
    server.client.pace = 0.005

    async def leave():
        async with server.running():
            answer = await server.ask("POST", path, body, leave=lambda a: a.body.count(b"data:") > 5)
            await until(lambda: server.client.idle)
            return answer

    answer = asyncio.run(leave())
    assert b"[DONE]" not in answer.body
    assert {finish for _, _, finish in server.client.finished} == {"cancelled"}


def test_a_finished_request_is_not_cancelled():
    server = Server.new()
    server.post(CHAT, {"messages": USER})
    assert server.client.cancelled == []


def test_if_one_prompt_has_no_place_none_is_taken():
    server = Server.new()
    server.client.gate.clear()

    async def refuse():
        async with server.running():
            other = asyncio.ensure_future(server.ask("POST", "/v1/completions", {"prompt": "a"}))
            await until(lambda: bool(server.client.submitted))
            refused = [
                await server.ask("POST", path, body)
                for path, body in (
                    ("/v1/completions", {"prompt": ["a"] * 16}),
                    ("/v1/completions", {"prompt": ["a"] * 8, "n": 2}),
                    ("/vertex", {"instances": [{"inputs": "a"}] * 16}),
                )
            ]
            fits = asyncio.ensure_future(server.ask("POST", "/v1/completions", {"prompt": ["a"] * 15}))
            await until(lambda: len(server.client.submitted) == 16)
            server.client.gate.set()
            return refused, await other, await fits

    refused, *answers = asyncio.run(refuse())
    assert [a.status for a in refused] == [429] * 3 and [a.status for a in answers] == [200] * 2
    assert len(server.client.finished) == 16 and not server.client.cancelled


def test_if_one_prompt_is_wrong_none_is_taken():
    server = Server.new()
    answer = server.post("/v1/completions", {"prompt": [[1], [2], [999]]})
    assert answer.status == 400 and "999" in answer.json["error"]["message"] and not server.client.submitted


def test_parts_of_an_embedding_keep_their_places():
    server = Server.new()
    crowd = []

    async def crowded():
        async with server.running():
            server.client.gate.clear()
            embedding = asyncio.ensure_future(server.ask("POST", "/v1/embeddings", {"input": ["a"] * 20}))
            await until(lambda: len(server.client.submitted) == 8)
            crowd.extend(asyncio.ensure_future(server.ask("POST", CHAT, {"messages": USER})) for _ in range(9))
            refused = await next(asyncio.as_completed(crowd))
            server.client.gate.set()
            statuses = [refused.status, (await embedding).status]
            await asyncio.gather(*crowd)
            return statuses, await server.ask("POST", "/v1/completions", {"prompt": ["a"] * 16})

    statuses, after = asyncio.run(crowded())
    assert statuses == [429, 200] and after.status == 200


def test_prompts_that_never_fit_together_are_refused_for_good():
    server = Server.new()
    answer = server.post("/v1/completions", {"prompt": ["a"] * 17})
    assert answer.status == 400 and "at most 16" in answer.json["error"]["message"] and not server.client.submitted


def test_a_disconnect_while_submitting_cancels(monkeypatch):
    server = Server.new()
    server.client.gate.clear()
    slow, begun = server.client.submit, asyncio.Event()

    async def leave():
        loop = asyncio.get_running_loop()

        def submit(*args):
            loop.call_soon_threadsafe(begun.set)
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), loop).result()
            return slow(*args)

        monkeypatch.setattr(server.client, "submit", submit)
        async with server.running():
            await server.ask("POST", CHAT, {"messages": USER}, leave=lambda _: begun.is_set())
            await until(lambda: bool(server.client.submitted) and server.client.idle)

    asyncio.run(leave())
    assert [finish for _, _, finish in server.client.finished] == ["cancelled"]


def test_who_leaves_counts_as_read_until_the_work_is_done():
    server, gate = Server.new(), threading.Event()

    async def leave():
        async with server.running():
            hub = server.app.state.hub
            crowd = [asyncio.ensure_future(hub.run(lambda: gate.wait(20))) for _ in range(THREADS)]
            await asyncio.sleep(0.05)
            for one in crowd:
                one.cancel()
            await asyncio.wait(crowd)
            hub._room = THREADS
            refused = await server.ask("POST", CHAT, {"messages": USER})
            gate.set()
            await until(lambda: not hub._parsing)
            queued = [asyncio.ensure_future(hub.run(lambda: time.sleep(0.05))) for _ in range(THREADS)]
            answer = await asyncio.gather(*queued, return_exceptions=True)
            return refused.status, answer, (await server.ask("POST", CHAT, {"messages": USER})).status

    assert asyncio.run(leave()) == (429, [None] * THREADS, 200)


def test_a_body_that_never_comes_is_no_request():
    server = Server.new()

    async def leave():
        async with server.running():
            messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

            async def receive():
                return next(messages)

            async def send(message):
                raise AssertionError("nobody is there")

            kind = [(b"content-type", b"application/json")]
            scope = {"type": "http", "method": "POST", "path": CHAT, "headers": kind, "query_string": b""}
            await server.app(scope | {"root_path": "", "server": None, "scheme": "http"}, receive, send)

    asyncio.run(leave())
    assert server.client.submitted == []


def test_silence_is_kept_alive(monkeypatch):
    monkeypatch.setattr("ridgeline.server.hub.KEEP_ALIVE_S", 0.01)
    server = Server.new()
    server.client.gate.clear()

    async def wait():
        async with server.running():
            asking = asyncio.ensure_future(server.ask("POST", CHAT, {"messages": USER, "stream": True}))
            await asyncio.sleep(0.1)
            server.client.gate.set()
            return await asking

    answer = asyncio.run(wait())
    assert b": keep-alive\n\n" in answer.body and answer.events[-1] == "[DONE]"


def test_tokens_that_show_nothing_are_silence_too(monkeypatch):
    monkeypatch.setattr("ridgeline.server.hub.KEEP_ALIVE_S", 0.03)
    server = Server.new("b" * 40)
    server.client.pace = 0.01
    answer = server.post(CHAT, {"messages": USER, "stream": True, "stop": ["b" * 30 + "a"]})
    assert b": keep-alive\n\n" in answer.body and answer.events[-1] == "[DONE]"


def test_closing_the_client_ends_streams_with_an_error():
    server = Server.new()
    server.client.gate.clear()

    async def close():
        async with server.running():
            asking = asyncio.ensure_future(server.ask("POST", CHAT, {"messages": USER, "stream": True}))
            await until(lambda: bool(server.client.submitted))
            server.client.close()
            return await asyncio.wait_for(asking, 5)

    *_, error, done = asyncio.run(close()).events
    assert "shut down" in error["error"]["message"] and done == "[DONE]"


@pytest.mark.parametrize("seed", range(10))
def test_random_requests_and_disconnects_end_exactly_once(seed):
    server = Server.new()
    rng = random.Random(seed)

    async def one() -> int:
        path, body = rng.choice(REQUESTS)
        await asyncio.sleep(rng.random() * 0.3)
        after = rng.choice([None, None, 0, 100, 400, 2000])
        leave = None if after is None else (lambda answer: len(answer.body) >= after)
        return (await server.ask("POST", path, body, leave=leave)).status

    async def many():
        async with server.running():
            statuses = await asyncio.gather(*(one() for _ in range(100)))
            hub = server.app.state.hub  # what left while it was being submitted is submitted, and cancelled, still
            await until(lambda: hub._parsing == 0 and server.client.idle)
            return statuses

    statuses = asyncio.run(many())
    assert set(statuses) <= {0, 200, 429} and 200 in statuses
    expected = Counter((s.id, c) for s in server.client.submitted for c in range(s.params.n))
    assert Counter((id, choice) for id, choice, _ in server.client.finished) == expected


def test_a_signal_inside_the_handler_of_another_is_the_second():
    graces = []

    def drain(seconds, then):
        if not graces:  # the first handler is still running
            graces.append(None)
            server.handle_exit(2, None)
        graces.append(seconds)
        then()

    server = GentleServer(uvicorn.Config(None), SimpleNamespace(drain=drain), 90)
    server.handle_exit(15, None)
    assert graces == [None, 0, 90] and server.should_exit
