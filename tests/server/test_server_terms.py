"""Whose account a request runs on, how urgent it is and how long it may take: headers, fields, and what an end says."""

from __future__ import annotations

import asyncio

import pytest
from serving import Server, until

from ridgeline.config import EngineConfig, ServerConfig
from ridgeline.engine.records import EXPIRED, Terms
from ridgeline.errors import ConfigError

CHAT = "/v1/chat/completions"
BODIES = {
    CHAT: {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"prompt": "a"},
    "/generate": {"inputs": "a"},
    "/generate_stream": {"inputs": "a"},
    "/": {"inputs": "a"},
}


def headers(**given: object) -> list[tuple[bytes, bytes]]:
    return [(f"X-Ridgeline-{name.replace('_', '-')}".encode(), str(v).encode()) for name, v in given.items()]


def terms_of(server: Server, path: str, more: dict | None = None, **given: object) -> Terms:
    assert server.post(path, BODIES[path] | (more or {}), headers=headers(**given)).status == 200
    return server.client.submitted[-1].terms


@pytest.mark.parametrize("path", BODIES)
def test_headers_and_the_servers_own_limits(path):
    assert terms_of(Server.new(), path) == Terms()
    given = terms_of(Server.new(), path, tenant="ann", max_wait="1.5", max_time=20)
    assert given == Terms(tenant="ann", wait_s=1.5, total_s=20.0)
    server = Server.new(max_wait=5.0, max_time=60.0)
    assert terms_of(server, path, max_wait=2) == Terms(wait_s=2.0, total_s=60.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_wait", "6"), ("max_wait", "0"), ("max_wait", "-1"), ("max_wait", "nan"), ("max_wait", "1e3"),
     ("max_time", "9999999"), ("max_time", ""), ("tenant", "a" * 129), ("tenant", "a b")],
)  # fmt: skip
def test_headers_that_say_nothing_useful_are_refused(name, value):
    server = Server.new(max_wait=5.0)
    for path, status in ((CHAT, 400), ("/generate", 422)):
        answer = server.__class__.new(max_wait=5.0).post(path, BODIES[path], headers=headers(**{name: value}))
        assert answer.status == status and f"x-ridgeline-{name.replace('_', '-')}" in answer.body.decode()


def test_priority_is_as_in_vllm():
    """Lower goes first, and one other than 0 is refused where the server does not look at it."""
    server = Server.new()
    answer = server.post(CHAT, BODIES[CHAT] | {"priority": -3})
    assert answer.status == 400 and answer.json["error"]["param"] == "priority" and "fcfs" in answer.body.decode()
    assert terms_of(Server.new(), CHAT, {"priority": 0}).priority == 0
    server = Server.new(policy="priority")
    assert terms_of(server, "/v1/completions", {"priority": -3}).priority == 3
    assert Server.new(policy="priority").post(CHAT, BODIES[CHAT] | {"priority": 1 << 40}).status == 400


def test_a_salt_keeps_prefixes_apart_and_names_of_users_do_not():
    assert terms_of(Server.new(), CHAT, {"cache_salt": "s"}) == Terms(salt="s")
    server = Server.new()
    more = {"user": "u", "safety_identifier": "i", "prompt_cache_key": "k"}
    answer = server.post(CHAT, BODIES[CHAT] | more)
    assert answer.status == 200 and "x-ridgeline-warning" not in answer.headers
    assert server.client.submitted[-1].terms == Terms()


def expired(path: str, body: dict, tokens: int = 0, **given: object):
    """The answer to a request whose time is up after so many tokens."""
    server = Server.new(answer="z" * 150)
    server.client.gate.clear()

    async def expire():
        async with server.running():
            asking = asyncio.ensure_future(server.ask("POST", path, body, headers=headers(**given)))
            await until(lambda: bool(server.client.submitted))
            if tokens:
                server.client.pace = 0.01
                server.client.gate.set()
                await until(lambda: any(at >= tokens for *_, at in server.client._running.values()))
            server.client.cancel(1, EXPIRED)
            return await asyncio.wait_for(asking, 10)

    return asyncio.run(expire())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/"])
def test_a_request_that_expires_in_the_queue_has_a_status_and_a_time_to_come_back(path, stream):
    answer = expired(path, BODIES[path] | {"stream": stream}, max_wait=3)
    assert answer.status == 504 and int(answer.headers["retry-after"]) >= 1
    said = answer.json["error_type"] if path == "/" else answer.json["error"]["code"]
    assert said == "deadline" and "first token" in answer.body.decode()
    assert path == "/" or answer.json["error"]["type"] == "server_error"


def test_a_stream_that_expires_ends_with_an_error():
    answer = expired(CHAT, BODIES[CHAT] | {"stream": True}, tokens=3, max_time=30)
    *_, error, done = answer.events
    assert answer.status == 200 and error["error"]["code"] == "deadline" and done == "[DONE]"
    assert sum(bool(e["choices"][0]["delta"].get("content")) for e in answer.events[:-2]) >= 3
    answer = expired("/generate_stream", BODIES["/generate_stream"], tokens=3, max_time=30)
    assert answer.events[-1]["error_type"] == "deadline"
    whole = expired("/generate", BODIES["/generate"], tokens=3, max_time=30)
    assert whole.status == 504 and "retry-after" not in whole.headers


@pytest.mark.parametrize("wrong", [{"max_wait": -1.0}, {"max_time": 1e9}, {"max_pause": 0.0}, {"max_undelivered": 0}])
def test_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ServerConfig(EngineConfig("fake", backend="reference"), **wrong)
