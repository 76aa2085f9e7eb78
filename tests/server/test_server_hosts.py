"""Names that a browser may have been led here by, and the questions that it asks before it lets a page ask."""

from __future__ import annotations

import asyncio

import pytest
from serving import Server

from ridgeline.config import AccessConfig
from ridgeline.errors import ConfigError

BODY = {"inputs": "a"}
OURS = [
    "localhost", "LOCALHOST:3000", "localhost.", "a.localhost:1", "127.0.0.1:3000", "127.9.9.9", "[::1]", "[0:0::1]:80",
]  # fmt: skip
OTHERS = [
    "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "localhost..", "evil.example#localhost",
    "0.0.0.0", "[::]:80", "[1.2.3.4]", "[:::]", "[::1", "[::1]x", "::1", "localhost:port", "localhost:",
    "localhost:123456", "", " ", "a b", "löcalhost", "localhost\t", "2130706433",
]  # fmt: skip


def ask(server: Server, method: str, path: str, **headers: str):
    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return asyncio.run(server._alone(method, path, BODY, headers=given))


@pytest.mark.parametrize("host", OURS)
def test_names_of_this_machine(host):
    assert ask(Server.new(), "GET", "/info", host=host).status == 200
    assert ask(Server.new(), "POST", "/generate", host=host, origin=f"http://{host}").status == 200


@pytest.mark.parametrize("host", OTHERS)
def test_other_names_are_refused(host):
    answer = ask(Server.new(), "GET", "/info", host=host)
    assert answer.status == 403 and answer.json["error_type"] == "forbidden"


@pytest.mark.parametrize(
    "origin", ["null", "", "localhost", "ftp://localhost", "http://localhost.", "http://localhost/x"]
)
def test_origins_that_are_not_this_servers(origin):
    for headers in ({"host": "localhost", "origin": origin}, {"origin": origin}):
        assert ask(Server.new(), "POST", "/generate", **headers).status == 403


def test_listed_names_are_compared_as_names_are():
    access = AccessConfig(allowed_hosts=("LLM.example", "2001:DB8::1", "[2001:db8::2]"))
    for host in ("llm.example", "LLM.EXAMPLE.:8080", "[2001:db8::1]:3000", "[2001:DB8::2]", "localhost"):
        assert ask(Server.new(access=access), "GET", "/info", host=host).status == 200
    for host in ("x.llm.example", "llm.example..", "[2001:db8::3]"):
        assert ask(Server.new(access=access), "GET", "/info", host=host).status == 403


@pytest.mark.parametrize("host", ["llm.example:3000", "http://llm.example", "a b", "", "*.example"])
def test_what_is_no_name_cannot_be_listed(host):
    with pytest.raises(ConfigError, match="allowed_hosts"):
        AccessConfig(allowed_hosts=(host,))


def preflight(server: Server, origin: str):
    asked = {"access_control_request_method": "POST", "access_control_request_headers": "content-type, authorization"}
    return ask(server, "OPTIONS", "/v1/chat/completions", host="localhost", origin=origin, **asked)


@pytest.mark.parametrize("keys", [{}, {"api_key": "secret"}])
def test_pages_that_are_listed_may_ask_and_others_may_not(keys):
    def server() -> Server:
        return Server.new(access=AccessConfig(cors_allow_origin=("https://app.example",), **keys))

    answer = preflight(server(), "https://app.example")
    assert answer.status == 200 and answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "authorization" in answer.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in answer.headers
    for origin in ("https://evil.example", "null", "http://app.example", "https://app.example:8443"):
        refused = preflight(server(), origin)
        assert refused.status == 400 and "access-control-allow-origin" not in refused.headers
    errors = ask(server(), "POST", "/generate", host="localhost", origin="https://app.example", x_api_key="wrong")
    assert errors.headers["access-control-allow-origin"] == "https://app.example"  # or a page could not read why
    assert "retry-after" in errors.headers["access-control-expose-headers"]


def test_without_a_list_no_page_is_told_that_it_may_ask():
    for access in (AccessConfig(), AccessConfig(api_key="secret")):
        answer = preflight(Server.new(access=access), "https://app.example")
        assert answer.status in (401, 403) and not any(name.startswith("access-control") for name in answer.headers)


def test_origins_are_listed_as_browsers_send_them():
    for origin in ("https://App.example", "https://app.example/", "app.example", "null"):
        with pytest.raises(ConfigError, match="cors_allow_origin"):
            AccessConfig(cors_allow_origin=(origin,))
