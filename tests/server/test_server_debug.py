"""GET /debug/...: by the ids that replies carry, and for the server's own machine alone."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from serving import Server

from ridgeline.config import AccessConfig
from ridgeline.engine import journal
from ridgeline.engine.records import Note
from ridgeline.server.debug import about_request
from ridgeline.server.keys import new_key, write_keys
from ridgeline.server.remembered import Remembered

CHAT = "/v1/chat/completions"
MESSAGES = {"messages": [{"role": "user", "content": "hello"}]}


def many(server: Server, *asked):
    async def one_by_one():
        async with server.running():
            first = await server.ask("POST", *asked[0])
            return first, [await server.ask("GET", path(first)) for path in asked[1:]]

    return asyncio.run(one_by_one())


@pytest.mark.parametrize("body", [MESSAGES, MESSAGES | {"stream": True}])
def test_a_request_is_told_by_its_ids(body):
    def of_object(a):
        return f"/debug/requests/{(a.events[0] if 'stream' in body else a.json)['id']}"

    first, told = many(
        Server.new(), (CHAT, body), of_object, lambda a: f"/debug/requests/{a.headers['x-request-id']}",
        lambda a: "/debug/requests/1",
    )  # fmt: skip
    assert first.status == 200
    for answer in told:
        assert answer.status == 200
        assert answer.json["requests"] == [{"request": 1, "why": ["choice 0 is number 1 of the fake"]}]


def test_every_prompt_of_a_request_is_told():
    body = {"prompt": ["a", "b"], "max_tokens": 2}
    _, (told,) = many(Server.new(), ("/v1/completions", body), lambda a: f"/debug/requests/{a.json['id']}")
    assert [r["request"] for r in told.json["requests"]] == [1, 2]


def test_what_is_remembered_is_bounded_and_the_last(monkeypatch):
    monkeypatch.setattr("ridgeline.server.remembered._REQUESTS", 2)
    server = Server.new()

    async def asked():
        async with server.running():
            for name in (b"a", b"b", b"a", b"c"):
                texts = {"input": ["x"] * 100}
                await server.ask("POST", "/v1/embeddings", texts, headers=[(b"x-request-id", name)])
            return [await server.ask("GET", f"/debug/requests/{name}") for name in "abc"]

    again, gone, last = asyncio.run(asked())
    assert gone.status == 404
    assert [r["request"] for r in again.json["requests"]] == [*range(237, 301)]
    assert [r["request"] for r in last.json["requests"]] == [*range(337, 401)]


def test_the_engine():
    _, (told,) = many(Server.new(), (CHAT, MESSAGES), lambda a: "/debug/engine")
    assert told.status == 200 and told.json["pages"]["total"] == told.json["pages"]["free"] == 10_000
    assert {"waiting", "running", "paused", "cached_tokens", "preemptions", "recomputed_tokens"} <= told.json.keys()


@pytest.mark.parametrize("id", ["nothing", "99", "chatcmpl-" + "0" * 32, "1" * 40, "%F0%9F%98%80"])
def test_unknown_ids(id):
    assert Server.new().get(f"/debug/requests/{id}").status == 404


def test_other_machines_are_refused():
    server = Server.new()

    async def ask():
        async with server.running():
            return [await server.ask("GET", "/debug/engine", client=c) for c in ("10.0.0.7", "", "::1")]

    assert [a.status for a in asyncio.run(ask())] == [403, 403, 200]


@pytest.fixture
def keyed(tmp_path):
    """A server, and for each key by name what its clients send."""
    drawn = {name: new_key(name, scopes=scopes) for name, scopes in
             {"ann": ("user",), "ben": ("user",), "root": ("admin",), "meter": ("metrics",)}.items()}  # fmt: skip
    write_keys(tmp_path / "keys.json", [key for _, key in drawn.values()])
    server = Server.new(access=AccessConfig(api_keys=str(tmp_path / "keys.json")))
    return server, {name: (b"x-api-key", secret.encode()) for name, (secret, _) in drawn.items()}


def test_a_key_is_told_of_its_own_requests(keyed):
    server, keys = keyed
    seen = {}

    async def ask():
        async with server.running():
            for name in ("ann", "ben", "ben"):  # both give their requests the same name
                await server.ask("POST", CHAT, MESSAGES, headers=[keys[name], (b"x-request-id", b"mine")])
            anns = await server.ask("POST", CHAT, MESSAGES, headers=[keys["ann"]])
            for name, key in keys.items():
                paths = ("mine", anns.json["id"], "1", "3", "99")
                answers = [await server.ask("GET", f"/debug/requests/{path}", headers=[key]) for path in paths]
                seen[name] = [
                    [r["request"] for r in a.json["requests"]] if a.status == 200 else a.status for a in answers
                ]

    asyncio.run(ask())
    assert seen == {
        "ann": [[1], [4], [1], 404, 404],
        "ben": [[3], 404, 404, [3], 404],
        "root": [[1, 3], [4], [1], [3], 404],
        "meter": [403] * 5,
    }


def test_words_name_no_other_keys_requests(keyed):
    server, keys = keyed
    words = [value for name, value in vars(journal).items() if name.isupper() and "{" in str(value)]
    server.client.ledger.why = lambda id: [Note(id, 0, word, (2, 7, 9)).text for word in words] if id < 3 else []

    async def ask():
        async with server.running():
            for name in ("ann", "ben"):
                await server.ask("POST", CHAT, MESSAGES, headers=[keys[name]])
            return [await server.ask("GET", "/debug/requests/1", headers=[keys[name]]) for name in ("ann", "root")]

    anns, roots = ("\n".join(a.json["requests"][0]["why"]) for a in asyncio.run(ask()))
    assert "request 2" not in anns and "waits: another request is computing" in anns
    assert "gives way: another request needed pages; 9 tokens" in anns
    assert roots.count("choice 7 of request 2") == 2


def test_a_key_that_asks_for_much_holds_nobody_up(monkeypatch):
    """All that is remembered is of one key, and every word names another's request: it is gone through twice, once to
    find the request and once for what is the key's own, and not for each word."""
    remembered, told, times = Remembered(), journal.Journal(), []
    through = remembered._of
    monkeypatch.setattr(remembered, "_of", lambda key: (times.append(key), through(key))[1])
    for i in range(4096):
        remembered.begin("ann", f"request-{i}", list(range(100 * i, 100 * i + 100)))
        told.add([Note(i % 100, 0, journal.GIVES_WAY, (10**6 + i, 0, 9))])
    hub = SimpleNamespace(remembered=remembered, client=SimpleNamespace(ledger=SimpleNamespace(why=told.why)))
    requests = about_request(hub, "request-0", "ann").body["requests"]
    assert times == ["ann", "ann"]
    assert [r["request"] for r in requests] == [*range(36, 100)]  # the last, while it goes on too
    assert all("another request needed pages" in said for r in requests for said in r["why"])
