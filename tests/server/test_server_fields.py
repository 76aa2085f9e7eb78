"""What a server allows beyond the defaults: strictness about unknown fields, and templates of requests."""

from __future__ import annotations

import pytest
from serving import Server

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "hello"}]
OWN = "{% for m in messages %}[{{ m.content }}]{% endfor %}"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": USER}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/embeddings", {"input": "x"}),
        ("/detokenize", {"tokens": [1]}),
    ],
)
def test_a_strict_server_refuses_what_it_would_ignore(path, body):
    reply = Server.new(strict=True).post(path, {**body, "odd": 1})
    assert reply.status == 400 and "odd" in reply.json["error"]["message"]


def test_a_strict_server_serves_what_it_knows():
    body = {"messages": USER, "user": "me", "metadata": {"a": "b"}, "parallel_tool_calls": True}
    reply = Server.new(strict=True).post(CHAT, body)
    assert reply.status == 200 and "x-ridgeline-warning" not in reply.headers


def test_a_template_of_a_request_is_refused_unless_that_is_allowed():
    body = {"messages": USER, "chat_template": OWN}
    reply = Server.new().post(CHAT, body)
    assert reply.status == 400 and reply.json["error"]["param"] == "chat_template"
    assert "--trust-request-chat-template" in reply.json["error"]["message"]
    server = Server.new(trust_request_chat_template=True)
    assert server.post(CHAT, body).status == 200
    assert bytes(server.client._tokenizer.token_bytes(t)[0] for t in server.client.submitted[0].prompt) == b"[hello]"
    assert Server.new(trust_request_chat_template=True).post(CHAT, {**body, "chat_template": "{% if"}).status == 422


@pytest.mark.parametrize(
    ("fields", "status", "warned"),
    [
        ({"prediction": {"type": "content", "content": "x"}}, 200, True),  # only ever a matter of speed
        ({"service_tier": "flex", "store": True}, 200, True),
        ({"verbosity": "low"}, 200, True),
        ({"prompt_cache_retention": "24h"}, 200, True),
        ({"user": "me", "safety_identifier": "x", "prompt_cache_key": "y", "metadata": {}}, 200, False),
        ({"modalities": ["text"]}, 200, False),
        ({"modalities": ["text", "audio"]}, 400, False),
        ({"audio": {"voice": "alloy", "format": "wav"}}, 400, False),
        ({"web_search_options": {}}, 400, False),
        ({"logits_processors": ["x"]}, 400, False),
    ],
    ids=str,
)
def test_fields_that_would_change_answers_are_refused_and_others_are_said_to_be_ignored(fields, status, warned):
    reply = Server.new().post(CHAT, {"messages": USER, **fields})
    assert reply.status == status and ("x-ridgeline-warning" in reply.headers) == warned, reply.body
    if status == 400:
        assert reply.json["error"]["param"] == next(iter(fields))
