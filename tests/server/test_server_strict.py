"""OpenAI's routes under --tgi-strict: TGI's own variant of them."""

from __future__ import annotations

import pytest
from serving import ANSWER, Server

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
