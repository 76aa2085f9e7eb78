"""Bad input and failures: each API's body and status, never a traceback, and the server goes on."""

from __future__ import annotations

import asyncio

import pytest
from serving import Server

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "hello"}]
GOOD = {CHAT: {"messages": USER}, COMPLETIONS: {"prompt": "hello"}, "/generate": {"inputs": "hello"}}
GOOD |= {"/": GOOD["/generate"], "/generate_stream": GOOD["/generate"]}


def openai_error(answer, status: int) -> dict:
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    return answer.json["error"]


@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b'{"a": "\xff"}', b'{"messages": "\\ud800"}', b"[1]", b"3", b"{}", b"[" * 100_000],
    ids=["empty", "cut", "words", "utf-8", "surrogate", "list", "number", "no fields", "deep"],
)
def test_malformed_bodies(path, body):
    answer = Server.new().post(path, body)
    if path.startswith("/v1/"):
        assert openai_error(answer, 400)["type"] == "invalid_request_error"
    else:
        assert answer.status == 422 and answer.json["error_type"] == "validation"
    assert b"Traceback" not in answer.body


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": "9"}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": 2}, "min_p"),
        ({"top_k": -1}, "top_k"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": -2.5}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"seed": 10**30}, "seed"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"5000": 1}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "add_generation_prompt"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"guided_json": 7}, "guided_json"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 3, "max_tokens": 2}, "min_tokens"),
        ({"typical_p": 0}, "typical_p"),
        ({"bad_words": "x"}, "bad_words"),
        ({"bad_words": [1]}, "bad_words"),
        ({"bad_words": [""]}, "bad_words"),
        ({"bad_words": [chr(97 + i % 26) * (2 + i // 26) for i in range(300)]}, "bad_words"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_bad_chat_fields_are_400_and_named(fields, param):
    error = openai_error(Server.new().post(CHAT, {"messages": USER, **fields}), 400)
    assert error["param"] == param and error["type"] == "invalid_request_error"
    assert param in error["message"] or param == "messages"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", 3]}, "prompt"),
        ({"prompt": ["a", [3]]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [9999]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [[1], []]}, "prompt"),
        ({"prompt": ["a"] * 100, "n": 2}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 3, "stream": True}, "best_of"),
        ({"best_of": 17}, "best_of"),
        ({"use_beam_search": True}, "best_of"),
        ({"use_beam_search": True, "best_of": 11}, "best_of"),
        ({"use_beam_search": True, "best_of": 3, "stop": "x"}, "stop"),
        ({"use_beam_search": True, "best_of": 3, "temperature": 0.5}, "temperature"),
        ({"length_penalty": 2}, "length_penalty"),
        ({"early_stopping": True}, "early_stopping"),
        ({"suffix": "x"}, "suffix"),
        ({"echo": True, "logprobs": 1, "n": 2, "stream": True}, "echo"),
    ],
)
def test_bad_completion_fields_are_400_and_named(fields, param):
    server = Server.new()
    error = openai_error(server.post(COMPLETIONS, {"prompt": "hello", **fields}), 400)
    assert error["param"] == param


def test_images_are_refused_by_name():
    parts = [{"type": "image_url", "image_url": {"url": "http://x"}}]
    error = openai_error(Server.new().post(CHAT, {"messages": [{"role": "user", "content": parts}]}), 400)
    assert "images are not supported" in error["message"]


def test_another_model_is_404():
    error = openai_error(Server.new().post(CHAT, {"messages": USER, "model": "gpt-9"}), 404)
    assert error["code"] == "model_not_found" and error["param"] == "model" and "gpt-9" in error["message"]


def test_a_model_without_template_is_422():
    error = openai_error(Server.new(template=None).post(CHAT, {"messages": USER}), 422)
    assert error["type"] == error["code"] == "template_error"


def test_a_template_that_refuses_is_422():
    server = Server.new(template="{{ raise_exception('no such talk') }}")
    assert "no such talk" in openai_error(server.post(CHAT, {"messages": USER}), 422)["message"]


def test_too_long_names_both_numbers():
    error = openai_error(Server.new().post(COMPLETIONS, {"prompt": "x" * 300}), 400)
    assert "300" in error["message"] and "200" in error["message"] and error["param"] == "prompt"
    assert error["code"] == "context_length_exceeded"
    error = openai_error(Server.new().post(COMPLETIONS, {"prompt": "x" * 150, "max_tokens": 60}), 400)
    assert "150" in error["message"] and "60" in error["message"] and error["param"] == "max_tokens"


@pytest.mark.parametrize("path", GOOD)
def test_a_body_over_the_limit_is_413(path):
    body = {**GOOD[path], "user": "x" * 3000}
    answer = Server.new(payload_limit=2000).post(path, body)
    assert answer.status == 413 and b"2000" in answer.body
    declared = Server.new().post(path, GOOD[path], headers=[(b"content-length", str(10**12).encode())])
    assert declared.status == 413


@pytest.mark.parametrize("path", GOOD)
def test_overload_is_429_with_retry_after(path):
    server = Server.new()

    async def crowd():
        server.client.gate.clear()
        async with server.running():
            waiting = [asyncio.ensure_future(server.ask("POST", path, GOOD[path])) for _ in range(16)]
            while server.client.choices < 16:
                await asyncio.sleep(0.001)
            refused = await server.ask("POST", path, GOOD[path])
            server.client.gate.set()
            return refused, await asyncio.gather(*waiting)

    refused, served = asyncio.run(crowd())
    assert refused.status == 429 and refused.headers["retry-after"] == "1"
    assert 0 < int(refused.headers["retry-after-ms"]) <= 1000  # what openai's client looks at first
    kind = refused.json["error"]["code"] if path.startswith("/v1/") else refused.json["error_type"]
    assert kind == "overloaded"
    assert all(a.status == 200 for a in served)


@pytest.mark.parametrize("path", GOOD)
def test_an_unhealthy_engine_is_503(path):
    server = Server.new()
    server.client.problem = "it is dead"
    answer = server.post(path, GOOD[path])
    assert answer.status == 503 and answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("path", GOOD)
def test_a_failed_choice(path):
    server = Server.new()
    server.client.crash_at = 3
    whole = server.post(path, GOOD[path])
    if path == "/generate_stream":
        assert whole.status == 200 and whole.events[-1]["error_type"] == "generation"
        return
    assert whole.status == 424
    kind = whole.json["error"]["code"] if path.startswith("/v1/") else whole.json["error_type"]
    assert kind == "generation"


def test_a_failure_inside_an_openai_stream():
    server = Server.new()
    server.client.crash_at = 3
    *_, content, error, done = server.post(CHAT, {"messages": USER, "stream": True}).events
    assert content["choices"][0]["delta"]["content"] == " "
    assert set(error["error"]) == {"message", "type", "param", "code"} and done == "[DONE]"


@pytest.mark.parametrize("path", GOOD)
def test_a_lost_pump_ends_every_request(path):
    server = Server.new()

    async def lose():
        async with server.running():
            server.client.gate.clear()
            waiting = asyncio.ensure_future(server.ask("POST", path, GOOD[path]))
            while not server.client.submitted:
                await asyncio.sleep(0.001)
            server.client.explode = True
            lost = await asyncio.wait_for(waiting, 5)
            return lost, await server.ask("POST", path, GOOD[path]), await server.ask("GET", "/health")

    lost, later, health = asyncio.run(lose())
    assert b"lost its engine" in lost.body and b"Traceback" not in lost.body
    assert later.status == 503 and health.status == 503


@pytest.mark.parametrize("path", GOOD)
def test_our_own_bug_is_500_without_a_traceback(path, monkeypatch):
    server = Server.new()

    def bug(*_):
        raise KeyError("secret detail")

    monkeypatch.setattr(server.client, "submit", bug)
    answer = server.post(path, GOOD[path])
    assert answer.status == 500 and b"secret" not in answer.body and b"error" in answer.body


def test_unknown_routes_and_methods_are_json():
    server = Server.new()
    assert "/v1/nothing" in openai_error(server.get("/v1/nothing"), 404)["message"]
    assert openai_error(Server.new().get(CHAT), 405)["type"] == "invalid_request_error"
    nowhere = Server.new().get("/nothing")
    assert nowhere.status == 404 and nowhere.json["error_type"] == "not_found"
    assert Server.new().get("/generate").status == 405


def test_models():
    body = Server.new().get("/v1/models").json
    assert body["object"] == "list" and [m["id"] for m in body["data"]] == ["fake-model", "nick"]
    assert {"id", "created", "object", "owned_by", "max_model_len"} <= set(body["data"][0])
    assert Server.new().get("/v1/models/fake-model").json["object"] == "model"
    assert openai_error(Server.new().get("/v1/models/org/other"), 404)["code"] == "model_not_found"


def test_the_server_goes_on_after_bad_requests():
    server = Server.new()

    async def mixed():
        async with server.running():
            for body in (b"{", b"[]", b'{"messages": 3}'):
                assert (await server.ask("POST", CHAT, body)).status == 400
            return await server.ask("POST", CHAT, {"messages": USER})

    assert asyncio.run(mixed()).status == 200
