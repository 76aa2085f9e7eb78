"""Who may ask for what: every route with and without keys, quotas, and what a browser could be tricked into."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import Server, until

from ridgeline.config import AccessConfig, EngineConfig, ServerConfig
from ridgeline.errors import ConfigError
from ridgeline.server.access import OPEN, scope_of
from ridgeline.server.app import check_openness
from ridgeline.server.keys import KeyRing, new_key, read_keys, write_keys
from ridgeline.server.quota import Bucket

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hello"}]}
ROUTES = sorted(
    (method, route.path.replace("{id:path}", "x").replace("{id}", "x"))
    for route in Server.new().app.routes
    for method in route.methods
)
OPEN_ROUTES = {(method, path) for method in ("GET", "HEAD") for path in ("/", "/health", "/ping")}


@pytest.fixture
def keyed(tmp_path):
    """A way to make servers with keys, and what their clients send: by name."""
    secrets, keys = {}, []
    for name, more in {
        "ann": {},
        "meter": {"scopes": ("metrics",)},
        "root": {"scopes": ("admin",)},
        "slow": {"rate": 2},
        "poor": {"tokens": 60},
        "one": {"concurrency": 1},
    }.items():
        secrets[name], key = new_key(name, **more)
        keys.append(key)
    write_keys(tmp_path / "keys.json", keys)

    def new(**more) -> Server:
        return Server.new(access=AccessConfig(api_keys=str(tmp_path / "keys.json"), **more))

    return new, secrets


def bearer(secret: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {secret}".encode())]


def ask(server: Server, method: str, path: str, headers=(), **options):
    return asyncio.run(server._alone(method, path, BODY if method == "POST" else b"", headers=headers, **options))


def test_the_table_says_what_each_route_needs():
    needs = {route: scope_of(*route) for route in ROUTES}
    assert {route for route, scope in needs.items() if scope == OPEN} == OPEN_ROUTES
    assert {path for (_, path), scope in needs.items() if scope == "metrics"} == {"/metrics"}
    assert {path for (_, path), scope in needs.items() if scope == "admin"} == {"/debug/engine"}
    assert scope_of("POST", "/") == scope_of("GET", "/health/x") == scope_of("GET", "/metrics\n") == "user"


def test_a_health_route_of_ones_own_needs_no_key():
    for path, status in (("/well", 200), ("/health", 200), ("/info", 401)):
        server = Server.new(access=AccessConfig(api_key="secret"), health_route="/well")
        assert ask(server, "GET", path).status == status


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_with_keys(keyed, method, path):
    new, secrets = keyed
    needed = scope_of(method, path)
    for headers in ([], bearer("rl-wrong"), bearer(""), [(b"x-api-key", b"wrong")], [(b"authorization", b"Basic x")]):
        answer = ask(new(), method, path, headers)
        assert (answer.status == 401) == (needed != OPEN), answer.body
        assert (answer.headers.get("www-authenticate") == "Bearer") == (needed != OPEN)
    wrong = {"user": "meter", "metrics": "ann", "admin": "ann", OPEN: "meter"}[needed]
    assert (ask(new(), method, path, bearer(secrets[wrong])).status == 403) == (needed != OPEN)
    right = {"user": "ann", "metrics": "meter", "admin": "root", OPEN: "ann"}[needed]
    for name in (right, "root"):
        for headers in (bearer(secrets[name]), [(b"x-api-key", secrets[name].encode())]):
            assert ask(new(), method, path, headers, client="203.0.113.9").status not in (401, 403)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_without_keys(method, path):
    good = [
        [], [(b"host", b"localhost:3000")], [(b"host", b"127.0.0.1")], [(b"host", b"[::1]:3000")],
        [(b"host", b"localhost:3000"), (b"origin", b"http://localhost:3000")],
    ]  # fmt: skip
    bad = [
        [(b"host", b"evil.example")], [(b"host", b"evil.example:3000"), (b"origin", b"http://evil.example:3000")],
        [(b"host", b"127.0.0.1.evil.example")], [(b"host", b"localhost:3000@evil.example")], [(b"host", b"")],
        [(b"host", b"localhost"), (b"origin", b"https://evil.example")],
        [(b"host", b"localhost"), (b"origin", b"null")],
        [(b"host", b"localhost:3000"), (b"origin", b"http://localhost:8080")],
    ]  # fmt: skip
    for headers in good:
        assert ask(Server.new(), method, path, headers).status not in (401, 403)
    for headers in bad:
        assert ask(Server.new(), method, path, headers).status == 403, headers


@pytest.mark.parametrize("path", [path for method, path in ROUTES if method == "POST"])
def test_a_body_says_that_it_is_json(path):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"):
        server = Server.new()
        answer = asyncio.run(server._alone("POST", path, BODY, content_type=kind))
        assert answer.status == 415 and not server.client.submitted
    assert (
        asyncio.run(Server.new()._alone("POST", CHAT, BODY, content_type="Application/JSON; charset=utf-8")).status
        == 200
    )


def test_hosts_and_origins_that_are_listed():
    access = AccessConfig(allowed_hosts=("llm.example",), cors_allow_origin=("https://app.example",))
    headers = [(b"host", b"llm.example"), (b"origin", b"https://app.example")]
    answer = ask(Server.new(access=access), "POST", CHAT, headers)
    assert answer.status == 200 and answer.headers["access-control-allow-origin"] == "https://app.example"
    assert ask(Server.new(access=access), "GET", "/info", [(b"host", b"other.example")]).status == 403
    other = [(b"host", b"llm.example"), (b"origin", b"https://app.example.evil")]
    assert ask(Server.new(access=access), "POST", CHAT, other).status == 403
    assert "access-control-allow-origin" not in ask(Server.new(), "GET", "/info").headers


def test_listening_to_strangers_is_asked_for(capsys):
    engine = EngineConfig("fake", backend="reference")
    with pytest.raises(ConfigError, match=r"--api-keys, or --open"):
        check_openness(ServerConfig(engine, "0.0.0.0"))
    check_openness(ServerConfig(engine, "127.0.0.1"))
    check_openness(ServerConfig(engine, "0.0.0.0", access=AccessConfig(api_key="x")))
    assert capsys.readouterr().err == ""
    check_openness(ServerConfig(engine, "0.0.0.0", access=AccessConfig(open=True)))
    assert "everybody" in capsys.readouterr().err
    assert ask(Server.new(access=AccessConfig(open=True)), "GET", "/info", [(b"host", b"box.example")]).status == 200


def test_tgis_one_key_does_everything():
    server = Server.new(access=AccessConfig(api_key="sesame"))
    answer = ask(server, "POST", CHAT, [*bearer("sesame"), (b"x-ridgeline-tenant", b"ann")])
    assert answer.status == 200 and server.client.submitted[-1].terms.tenant == "ann"
    assert ask(Server.new(access=AccessConfig(api_key="sesame")), "POST", CHAT, bearer("simsim")).status == 401


def test_the_tenant_is_the_keys_name(keyed):
    new, secrets = keyed
    server = new()
    assert ask(server, "POST", CHAT, bearer(secrets["ann"])).status == 200
    assert server.client.submitted[-1].terms.tenant == "ann"
    refused = ask(new(), "POST", CHAT, [*bearer(secrets["ann"]), (b"x-ridgeline-tenant", b"bob")])
    assert refused.status == 400 and "x-ridgeline-tenant" in refused.json["error"]["message"]
    assert ask(new(), "GET", "/info", [*bearer(secrets["ann"]), (b"x-ridgeline-tenant", b"bob")]).status == 200


def many(server: Server, secret: str, count: int):
    async def one_by_one():
        async with server.running():
            return [await server.ask("POST", CHAT, BODY, headers=bearer(secret)) for _ in range(count)]

    return asyncio.run(one_by_one())


def test_requests_a_minute(keyed):
    new, secrets = keyed
    *served, refused = many(new(), secrets["slow"], 3)
    assert [a.status for a in served] == [200, 200]
    assert refused.status == 429 and refused.headers["retry-after"] == "30"
    assert refused.json["error"]["code"] == "rate_limit_exceeded" and "2 requests" in refused.json["error"]["message"]


def test_tokens_a_minute_are_paid_as_they_come(keyed):
    new, secrets = keyed
    first, second, refused = many(new(), secrets["poor"], 3)
    used = first.json["usage"]["total_tokens"] + second.json["usage"]["total_tokens"]
    assert used == 90 and refused.status == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 31  # until 1 of its 60 a minute is there


def test_prompts_are_paid_for_though_no_token_comes(keyed):
    new, secrets = keyed
    server = new()
    server.client.gate.clear()
    headers = bearer(secrets["poor"])

    async def vectors_and_nothing():
        async with server.running():
            taken = {"headers": headers, "leave": lambda a: bool(server.client.submitted)}
            left = await server.ask("POST", "/generate", {"inputs": "x" * 30}, **taken)
            server.client.gate.set()
            texts = {"input": ["x" * 20] * 2}
            vectors = [await server.ask("POST", "/v1/embeddings", texts, headers=headers) for _ in range(2)]
            return left, *vectors

    left, vectors, refused = asyncio.run(vectors_and_nothing())
    assert (left.status, vectors.status, refused.status) == (0, 200, 429)


@given(st.integers(1, 10_000), st.lists(st.tuples(st.integers(0, 20_000), st.floats(0, 200)), max_size=9))
def test_who_comes_when_told_is_served_and_who_comes_before_is_not(limit, taken):
    now = [0.0]
    bucket = Bucket(limit, lambda: now[0])
    for amount, pause in taken:
        bucket.take(amount)
        now[0] += pause
    wait = bucket.wait(limit)
    now[0] += 0.99 * wait
    assert (bucket.wait(limit) > 0) == (wait > 0)
    now[0] += 0.01 * wait + 1e-6
    assert bucket.wait(limit) == 0


def test_a_new_limit_holds_at_once():
    bucket = Bucket(0, lambda: 0.0)
    bucket.take(1000)
    assert bucket.wait(5) == 0.0
    for _ in range(5):
        bucket.take(1)
    assert bucket.wait(5) == 12.0 and bucket.wait(60) == 1.0


def test_a_limit_that_was_lifted_is_whole_when_it_comes_back():
    bucket = Bucket(5, lambda: 0.0)
    bucket.take(1000)
    assert bucket.wait(0) == 0.0
    bucket.take(1000)
    assert bucket.wait(5) == 0.0


def test_a_running_server_takes_notice_of_the_file(tmp_path, caplog):
    now, path = [0.0], tmp_path / "keys.json"
    secret, key = new_key("ann")
    other, bob = new_key("bob")
    write_keys(path, [key])
    ring = KeyRing(str(path), clock=lambda: now[0])
    write_keys(path, [bob])
    now[0] += 2
    assert ring.find(secret) is None and ring.find(other) == bob
    path.write_text("{")
    now[0] += 2
    assert ring.find(other) == bob and "stay as they are" in caplog.text
    write_keys(path, [])
    now[0] += 2
    assert ring.find(other) is None and ring  # keys are still asked for


def test_requests_at_once(keyed):
    new, secrets = keyed
    server = new()
    server.client.gate.clear()

    async def two():
        async with server.running():
            first = asyncio.ensure_future(server.ask("POST", CHAT, BODY, headers=bearer(secrets["one"])))
            await until(lambda: bool(server.client.submitted))
            second = await server.ask("POST", CHAT, BODY, headers=bearer(secrets["one"]))
            other = await server.ask("GET", "/info", headers=bearer(secrets["one"]))
            server.client.gate.set()
            await first
            return second, other, await server.ask("POST", CHAT, BODY, headers=bearer(secrets["one"]))

    second, other, third = asyncio.run(two())
    assert second.status == 429 and int(second.headers["retry-after"]) >= 1
    assert other.status == third.status == 200


def test_the_key_file_is_strict(tmp_path):
    path = tmp_path / "keys.json"
    _, key = new_key("ann")
    write_keys(path, [key])
    assert read_keys(path) == (key,) and path.stat().st_mode & 0o777 == 0o600
    good = json.loads(path.read_text())["keys"][0]
    for wrong in (
        "{", "[]", {"keys": [good | {"nmae": "x"}]}, {"keys": [good, good]}, {"keys": [good | {"scopes": ["god"]}]},
        {"keys": [good | {"name": "a/b"}]}, {"keys": [good | {"hash": "x"}]}, {"keys": [good | {"rate": -1}]},
        {"keys": [good | {"scopes": []}]},
    ):  # fmt: skip
        path.write_text(wrong if isinstance(wrong, str) else json.dumps(wrong))
        with pytest.raises(ConfigError, match="key"):
            read_keys(path)
    with pytest.raises(ConfigError, match="ridgeline keys add"):
        read_keys(tmp_path / "none.json")


def test_a_post_of_nothing_to_a_route_without_posts_is_told_so():
    async def bare():
        server = Server.new()
        async with server.running():
            return [await server.ask("POST", path, b"", content_type=None) for path in ("/info", "/generate")]

    there, generate = asyncio.run(bare())
    assert there.status == 405 and "GET" in there.headers["allow"] and generate.status == 422
