"""Every row of TGI's table of errors: status, slug, and when. Over a fake engine, and over the default model."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
from serving import MODEL, Server, engine_config, listening

from ridgeline.config import ServerConfig
from ridgeline.engine.process import ProcessClient
from ridgeline.server.app import create_app
from ridgeline.text.tokenizer import from_gguf
from ridgeline.weights.load import open_checkpoint

USER = [{"role": "user", "content": "hello"}]
CHAT, TEXTS, TOKENS = "/v1/chat/completions", "/v1/completions", "/chat_tokenize"
TOOL = {"type": "function", "function": {"name": "f"}}
REFUSED = [  # path, body, slug; with TGI's own limits, and a server that takes templates
    ("/generate", {"inputs": ""}, "validation"),
    ("/generate", {"inputs": "x", "parameters": {"top_p": 1.0}}, "validation"),
    ("/generate", {"inputs": "x", "parameters": {"grammar": {"type": "regex", "value": "("}}}, "validation"),
    (TOKENS, {"messages": USER, "chat_template": "{{ raise_exception('no') }}"}, "template_error"),
    (TOKENS, {"messages": USER, "chat_template": "{{ date.today }}"}, "missing_template_variable"),
    (TOKENS, {"messages": USER, "tools": [{"type": "function"}]}, "tool_error"),
    (TOKENS, {"messages": USER, "tools": [TOOL, TOOL]}, "tool_error"),
    (TOKENS, {"messages": USER, "tools": [TOOL], "tool_choice": "g"}, "tool_error"),
    (TOKENS, {"messages": USER, "tool_choice": "required"}, "tool_error"),
    (CHAT, {"messages": USER, "tools": [TOOL], "response_format": {"type": "json_object"}}, "tool_error"),
    (TEXTS, {"prompt": "x", "suffix": "y"}, "suffix not supported"),
    (TEXTS, {"prompt": ["x"] * 5}, "batch size exceeded"),
]
PLAIN = [  # body, type, status
    (b"{", "application/json", 400),
    (b'{"inputs": "x"}', "text/plain", 415),
    (b"{}", "application/json", 422),
    (b'{"inputs": 3}', "application/json", 422),
]
TGI = {
    "tgi_strict": True, "max_best_of": 2, "max_stop_sequences": 4, "max_top_n_tokens": 5, "max_client_batch_size": 4,
    "trust_request_chat_template": True,
}  # fmt: skip


@pytest.mark.parametrize(("path", "body", "slug"), REFUSED)
def test_refusals(path, body, slug):
    answer = Server.new(**TGI).post(path, body)
    assert answer.status == 422 and answer.json["error_type"] == slug, answer.body


@pytest.mark.parametrize(("body", "kind", "status"), PLAIN)
def test_malformed_bodies(body, kind, status):
    answer = Server.new(**TGI).post("/generate", body, content_type=kind)
    assert answer.status == status and answer.headers["content-type"].startswith("text/plain")


def test_openais_routes_have_the_same_slugs_as_codes():
    server = {"trust_request_chat_template": True}
    for body, status, code in (
        ({"chat_template": "{{ date.today }}"}, 422, "missing_template_variable"),
        ({"tools": [TOOL, TOOL]}, 400, "tool_error"),
    ):
        error = Server.new(**server).post(CHAT, {"messages": USER} | body)
        assert (error.status, error.json["error"]["code"]) == (status, code)


def test_a_bug_is_incomplete(monkeypatch):
    server = Server.new()
    monkeypatch.setattr(server.client, "submit", lambda *_: 1 / 0)
    answer = server.post("/generate", {"inputs": "x"})
    assert (answer.status, answer.json["error_type"]) == (500, "incomplete_generation")


@pytest.fixture(scope="module")
def strict(model_file):
    """The default model as TGI would serve it, one request at a time: its URL and its engine."""
    config = replace(engine_config(), max_requests=1, queue=0)
    client = ProcessClient(config)
    tokenizer = from_gguf(open_checkpoint(model_file.path).metadata)
    with listening(create_app(client, tokenizer, ServerConfig(config, **TGI), MODEL)) as url:
        yield url, client
    client.close()


@pytest.mark.model
def test_the_default_models_server_says_all_of_it(strict):
    httpx = pytest.importorskip("httpx", reason="httpx is not installed")
    url, client = strict
    with httpx.Client(base_url=url, timeout=120) as http:
        for path, body, slug in REFUSED:
            answer = http.post(path, json=body)
            assert (answer.status_code, answer.json()["error_type"]) == (422, slug), (path, body, answer.text)
        for data, kind, status in PLAIN:
            answer = http.post("/generate", content=data, headers={"content-type": kind})
            assert answer.status_code == status and answer.headers["content-type"].startswith("text/plain")
        ended = _crowded_and_crashed(http, client)
    assert [status for status, _ in ended] == [429, 424]
    assert [slug for _, slug in ended] == ["overloaded", "generation"]


def _crowded_and_crashed(http, client) -> list[tuple[int, str]]:
    """What a second request is told while one runs, and what that one is told when engines keep dying of it."""
    told = []
    body = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 400, "stop": ["\x00"]}}

    def ask() -> None:
        answer = http.post("/generate", json=body)
        told.append((answer.status_code, answer.json().get("error_type", "")))

    running = threading.Thread(target=ask)
    running.start()
    while not client.ledger.last.running:
        time.sleep(0.01)
    second = http.post("/generate", json=body)
    told.append((second.status_code, second.json()["error_type"]))
    end = time.monotonic() + 60
    while running.is_alive() and time.monotonic() < end:
        client._child.process.kill()
        time.sleep(0.1)
    running.join(60)
    return told
