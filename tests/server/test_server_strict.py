"""OpenAI's routes under --tgi-strict: TGI's own variant of them."""

from __future__ import annotations

import jsonschema
import pytest
from serving import ANSWER, TEMPLATE, Answer, Server, byte_tokenizer

from ridgeline.config import AccessConfig
from ridgeline.server.strict import OPEN_ROUTES

CHAT, TEXTS = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "hello"}]


def ask(path: str, server: Server | None = None, **fields):
    body = {"messages": USER} if path == CHAT else {"prompt": "xyz", "max_tokens": 50}
    return (server or Server.new(tgi_strict=True)).post(path, body | fields)


def test_a_chat_has_no_id_and_tgis_words():
    body = ask(CHAT, logprobs=True, top_logprobs=1).json
    (choice,) = body["choices"]
    assert body["id"] == "" and body["system_fingerprint"].endswith("-native")
    assert choice["message"] == {"role": "assistant", "content": ANSWER} and choice["finish_reason"] == "stop"
    assert set(choice["logprobs"]["content"][0]) == {"token", "logprob", "top_logprobs"}
    assert set(body["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens"}
    assert ask(CHAT, stop=["w"]).json["choices"][0]["finish_reason"] == "stop_sequence"
    assert ask(CHAT, max_tokens=2).json["choices"][0]["finish_reason"] == "length"


def test_every_delta_of_a_chat_says_its_role():
    *chunks, counts, done = ask(CHAT, stream=True, stream_options={"include_usage": True}, stop=["w"]).events
    deltas = [c["choices"][0]["delta"] for c in chunks]
    assert all(d["role"] == "assistant" for d in deltas) and "".join(d["content"] for d in deltas) == "Hi "
    assert deltas[0]["content"] == "H" and "usage" not in chunks[0]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop_sequence"
    assert counts["choices"] == [] and counts["usage"]["total_tokens"] > 3 and done == "[DONE]"


def test_completions_have_no_logprobs():
    (choice,) = ask(TEXTS, logprobs=2, echo=True, n=2).json["choices"]
    assert choice == {"index": 0, "text": ANSWER, "logprobs": None, "finish_reason": "stop"}


def test_a_stream_of_completions_ends_with_the_counts():
    *chunks, one, two, done = ask(TEXTS, prompt=["x", "y"], stream=True).events
    assert all(c["choices"][0]["finish_reason"] == "" and "usage" not in c for c in chunks)
    assert sorted(c["choices"][0]["index"] for c in (one, two)) == [0, 1]
    for last in (one, two):
        assert last["choices"][0]["finish_reason"] == "eos_token" and last["usage"]["prompt_tokens"] == 2
    assert done == "[DONE]"


def test_what_tgi_leaves_aside_and_what_it_makes_of_a_penalty():
    server = Server.new(tgi_strict=True)
    assert ask(CHAT, server, n=3, logit_bias=[1.5], presence_penalty=-0.5).status == 200
    (params,) = (s.params for s in server.client.submitted)
    assert (params.n, params.logit_bias, params.presence_penalty) == (1, {}, 0)
    assert params.repetition_penalty == 1.5


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"stop": "x"}),
        (CHAT, {"logit_bias": {"5": 1}}),
        (CHAT, {"messages": 3}),
        (CHAT, {"model": 3}),
        (CHAT, {"presence_penalty": True}),
        (TEXTS, {"prompt": [1, 2]}),
        (TEXTS, {"stop": "x"}),
    ],
)
def test_narrower_types_are_told_in_plain_text(path, fields):
    answer = ask(path, **fields)
    assert answer.status == 422 and answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    ("path", "fields", "kind"),
    [
        (CHAT, {"messages": []}, "validation"),
        (CHAT, {"top_logprobs": 6, "logprobs": True}, "validation"),
        (TEXTS, {"suffix": "x"}, "suffix not supported"),
        (TEXTS, {"prompt": ["x"] * 5}, "batch size exceeded"),
        (TEXTS, {"prompt": []}, "validation"),
    ],
)
def test_errors_are_tgis(path, fields, kind):
    server = Server.new(tgi_strict=True, max_top_n_tokens=5, max_client_batch_size=4)
    answer = ask(path, server, **fields)
    assert answer.status == 422 and answer.json["error_type"] == kind


def test_an_error_inside_a_stream_always_says_422():
    server = Server.new(tgi_strict=True)
    server.client.crash_at = 3
    *_, error, done = ask(CHAT, server, stream=True).events
    assert error["error"]["http_status_code"] == 422 and "failed" in error["error"]["message"] and done == "[DONE]"


# --- what TGI's clients may have come to rely on


def test_a_last_message_of_the_assistants_is_continued():
    messages = [*USER, {"role": "assistant", "content": "well,"}]
    for strict, end in ((True, "<assistant>well,"), (False, "</assistant><assistant>")):
        server = Server.new(tgi_strict=strict)
        assert ask(CHAT, server, messages=messages).status == 200
        prompt = server.client.submitted[0].prompt
        assert byte_tokenizer().decode(list(prompt), skip_special=False).endswith(end)
    assert ask(CHAT, messages=[*USER, {"role": "assistant", "content": ""}]).status == 200


def test_any_name_is_the_models():
    assert ask(CHAT, model="gpt-9").json["model"] == "gpt-9"
    assert ask(CHAT, model="tgi").json["model"] == ask(CHAT).json["model"] == "fake-model"
    assert all(e == "[DONE]" or e["model"] == "gpt-9" for e in ask(CHAT, model="gpt-9", stream=True).events)
    assert ask(TEXTS, model="gpt-9").json["model"] == "fake-model"


def test_completions_go_on_as_far_as_there_is_room():
    for strict, tokens in ((True, None), (False, 16)):
        server = Server.new(tgi_strict=strict)
        server.post(TEXTS, {"prompt": "xyz"})
        assert server.client.submitted[0].params.max_tokens == tokens


CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


def call(**fields):
    template = TEMPLATE + "{{ tools | tojson }}<tool_call>"
    server = Server.new(answer=CALL, template=template, context=900, tgi_strict=True)
    return ask(CHAT, server, tools=TOOLS, **fields)


def test_calls_are_numbered_and_end_with_stop():
    (choice,) = call().json["choices"]
    assert choice["finish_reason"] == "stop" and choice["message"]["tool_calls"][0]["id"] == "0"
    said = {"role": "assistant", "tool_calls": [{"id": "4", "type": "function", "function": {"name": "f"}}]}
    messages = [*USER, said, {"role": "tool", "tool_call_id": "4", "content": "x"}]
    *events, done = call(messages=messages, stream=True).events
    deltas = [e["choices"][0]["delta"] for e in events]
    calls = [c for d in deltas for c in d.get("tool_calls", ())]
    assert [c["id"] for c in calls if "id" in c] == ["5"] and done == "[DONE]"
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("content", ["hello", [{"type": "text", "text": "hello"}]])
def test_a_tool_prompt_is_told(content):
    server = Server.new(tgi_strict=True, context=900)
    answer = ask(CHAT, server, tools=TOOLS, tool_prompt="Use f.", messages=[{"role": "user", "content": content}])
    assert answer.status == 200
    prompt = byte_tokenizer().decode(list(server.client.submitted[0].prompt), skip_special=False)
    assert "hello\n---\nUse f.</user>" in prompt
    without = Server.new(tgi_strict=True)
    assert ask(CHAT, without, tool_prompt="Use f.").status == 200
    assert len(without.client.submitted[0].prompt) < 50


def test_tools_exclude_a_response_format():
    answer = call(response_format={"type": "json_object"})
    assert answer.status == 422 and answer.json["error_type"] == "tool_error"


def test_models_are_listed_as_tgi_does():
    assert Server.new(tgi_strict=True).get("/v1/models").json == {
        "object": "list",
        "data": [{"id": "fake-model", "object": "model", "created": 0, "owned_by": "fake-model"}],
    }


def test_invocations_are_tgis_too():
    server = Server.new(tgi_strict=True)
    assert server.post("/invocations", {"messages": USER, "model": "any"}).json["id"] == ""
    failing = Server.new(tgi_strict=True)
    failing.client.crash_at = 3
    *_, error, done = failing.post("/invocations", {"messages": USER, "stream": True}).events
    assert error["error"]["http_status_code"] == 422 and done == "[DONE]"


def test_what_tgi_tells_without_a_key():
    def keyed(method: str, path: str, strict: bool = True) -> Answer:
        server = Server.new(tgi_strict=strict, access=AccessConfig(api_key="k"))
        return server.post(path, {"messages": USER}) if method == "POST" else server.get(path, method)

    for method, path in sorted(OPEN_ROUTES):
        assert keyed(method, path).status == 200 and keyed(method, path, strict=False).status == 401
    assert keyed("HEAD", "/metrics").status == 200
    for path in (CHAT, TEXTS, "/generate", "/tokenize", "/invocations", "/vertex"):
        answer = keyed("POST", path)
        assert (answer.status, answer.body) == (401, b"")
    assert keyed("GET", "/debug/engine").status == keyed("GET", "/v1/models/x").status == 401


@pytest.mark.parametrize("path", [CHAT, "/generate"])
def test_what_is_wrong_with_a_body_as_such_is_plain_text(path):
    server = Server.new(tgi_strict=True, payload_limit=50)
    typed = server.post(path, {}, content_type="text/plain")
    long = Server.new(tgi_strict=True, payload_limit=50).post(path, {"inputs": "x" * 60})
    for answer, status in ((typed, 415), (long, 413)):
        assert answer.status == status and answer.headers["content-type"].startswith("text/plain")


def test_the_document_is_of_what_is_answered_here():
    document = Server.new(tgi_strict=True).get("/openapi.json").json
    schemas, paths = document["components"]["schemas"], document["paths"]

    def fits(answer, path: str, method: str = "post") -> None:
        told = paths[path][method]["responses"][str(answer.status)]["content"]
        kind = answer.headers["content-type"].partition(";")[0]
        whole = told[kind]["schema"] | {"components": {"schemas": schemas}}
        jsonschema.validate(answer.json if kind == "application/json" else answer.body.decode(), whole)

    fits(ask(CHAT, stop=["w"]), CHAT)
    fits(call(), CHAT)
    fits(ask(TEXTS), TEXTS)
    fits(Server.new(tgi_strict=True).get("/v1/models"), "/v1/models", "get")
    for body in ({"messages": []}, {"messages": 3}, b"{"):
        fits(Server.new(tgi_strict=True).post(CHAT, body), CHAT)
    fits(Server.new(tgi_strict=True).post("/generate", b"{"), "/generate")


def test_routes_that_are_not_there_are_told_as_tgi_does():
    for strict in (False, True):
        for path, status in (("/v1/nothing", 404), ("/v1/completions", 405)):
            answer = Server.new(tgi_strict=strict).get(path)
            assert answer.status == status and ("error_type" in answer.json) == strict
