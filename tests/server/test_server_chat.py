"""POST /v1/chat/completions over a fake engine: shapes, streams, sampling fields."""

from __future__ import annotations

import pytest
from serving import ANSWER, Server

USER = [{"role": "user", "content": "hello"}]
PROMPT = "<user>hello</user><assistant>"


def chat(server: Server | None = None, **fields):
    return (server or Server.new()).post("/v1/chat/completions", {"messages": USER, **fields})


def prompt_of(server: Server) -> str:
    return bytes(b for t in server.client.submitted[0].prompt for b in server.client._tokenizer.token_bytes(t)).decode()


def test_a_whole_answer_has_openais_shape():
    body = chat(model="fake-model").json
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert body["model"] == "fake-model" and body["system_fingerprint"] == "program-hash"
    assert isinstance(body["created"], int)
    (choice,) = body["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": ANSWER, "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }
    tokens = len(ANSWER.encode()) + 1
    assert body["usage"]["prompt_tokens"] == len(PROMPT)
    assert body["usage"]["completion_tokens"] == tokens
    assert body["usage"]["total_tokens"] == len(PROMPT) + tokens
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


def test_a_stream_is_role_then_content_then_an_empty_finish():
    answer = chat(stream=True)
    assert answer.headers["content-type"] == "text/event-stream"
    *chunks, done = answer.events
    assert done == "[DONE]"
    first, *middle, last = (c["choices"][0] for c in chunks)
    assert first["delta"] == {"role": "assistant", "content": ""} and first["finish_reason"] is None
    assert all(set(c["delta"]) == {"content"} and c["finish_reason"] is None for c in middle)
    assert "".join(c["delta"]["content"] for c in middle) == ANSWER
    assert last["delta"] == {} and last["finish_reason"] == "stop"
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    for name in ("id", "created", "model", "system_fingerprint"):
        assert len({c[name] for c in chunks}) == 1
    assert all("usage" not in c for c in chunks)


def test_usage_comes_in_one_extra_chunk_if_asked():
    *chunks, last, _ = chat(stream=True, stream_options={"include_usage": True}).events
    assert all(c["usage"] is None for c in chunks)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == len(ANSWER.encode()) + 1


def test_no_chunk_splits_a_character():
    *chunks, _ = chat(stream=True).events
    assert all("\ufffd" not in c["choices"][0]["delta"].get("content", "") for c in chunks)


def test_n_choices_stream_by_index():
    *chunks, _ = chat(stream=True, n=3, seed=7).events
    texts, finishes = {}, {}
    for chunk in chunks:
        (c,) = chunk["choices"]
        texts[c["index"]] = texts.get(c["index"], "") + c["delta"].get("content", "")
        if c["finish_reason"]:
            assert c["index"] not in finishes
            finishes[c["index"]] = c["finish_reason"]
    assert texts == dict.fromkeys(range(3), ANSWER)
    assert finishes == dict.fromkeys(range(3), "stop")


def test_n_choices_whole():
    body = chat(n=2).json
    assert [c["index"] for c in body["choices"]] == [0, 1]
    assert body["usage"]["completion_tokens"] == 2 * (len(ANSWER.encode()) + 1)


def test_logprobs_have_bytes_and_alternatives_and_leave_out_eos():
    (choice,) = chat(logprobs=True, top_logprobs=2).json["choices"]
    items = choice["logprobs"]["content"]
    assert bytes(b for i in items for b in i["bytes"]).decode() == ANSWER
    assert items[0]["token"] == "H" and items[0]["logprob"] == -0.5
    assert len(items[0]["top_logprobs"]) == 2
    assert set(items[0]["top_logprobs"][0]) == {"token", "logprob", "bytes"}


def test_streamed_logprobs_are_the_same_list():
    *chunks, _ = chat(stream=True, logprobs=True).events
    pieces = [c["choices"][0]["logprobs"] for c in chunks]
    items = [i for p in pieces if p for i in p["content"]]
    assert bytes(b for i in items for b in i["bytes"]).decode() == ANSWER
    assert all(i["top_logprobs"] == [] for i in items)


def test_max_tokens_ends_with_length():
    (choice,) = chat(max_completion_tokens=4).json["choices"]
    assert choice["finish_reason"] == "length" and choice["message"]["content"] == "Hi w"


def test_chat_has_no_limit_of_its_own():
    server = Server.new()
    chat(server)
    assert server.client.submitted[0].params.max_tokens is None


@pytest.mark.parametrize("stop", [", b", [", b", "zzz"]])
def test_a_stop_string_is_cut_off(stop):
    (choice,) = chat(stop=stop).json["choices"]
    assert choice["message"]["content"] == "Hi wörld" and choice["finish_reason"] == "stop"


def test_a_stop_string_can_be_kept():
    (choice,) = chat(stop=", b", include_stop_str_in_output=True).json["choices"]
    assert choice["message"]["content"] == "Hi wörld, b"


def test_a_stop_token_is_no_text_and_no_logprob():
    (choice,) = chat(stop_token_ids=[_id(",")], logprobs=True).json["choices"]
    assert choice["message"]["content"] == "Hi wörld" and choice["finish_reason"] == "stop"
    assert choice["logprobs"]["content"][-1]["token"] == "d"


def _id(char: str) -> int:
    return Server.new().client._tokenizer.encode(char, add_special=False)[0]


def test_every_sampling_field_reaches_the_engine():
    server = Server.new()
    chat(
        server, temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, frequency_penalty=0.2, presence_penalty=0.3,
        repetition_penalty=1.1, seed=11, logit_bias={"5": -3, "6": 4.5}, ignore_eos=True, skip_special_tokens=False,
        max_tokens=3, typical_p=0.8, min_tokens=2,
    )  # fmt: skip
    p = server.client.submitted[0].params
    assert (p.temperature, p.top_p, p.top_k, p.min_p) == (0.5, 0.9, 7, 0.1)
    assert (p.frequency_penalty, p.presence_penalty, p.repetition_penalty) == (0.2, 0.3, 1.1)
    assert (p.typical_p, p.min_tokens) == (0.8, 2)
    assert p.seed == 11 and p.logit_bias == {5: -3.0, 6: 4.5} and p.ignore_eos and not p.skip_special_tokens
    assert not p.count_prompt  # OpenAI's penalties count output tokens only


def test_bad_words_are_banned_at_the_beginning_and_after_a_space():
    server = Server.new()
    chat(server, bad_words=["ab", " c", " ", "ab"])
    space, a, b, c = map(_id, " abc")
    assert server.client.submitted[0].params.bad_words == ((a, b), (space, a, b), (c,), (space, c), (space,))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_stop_strings_within_min_tokens_are_text(path):
    """The answer is one token per byte: "ö" is two."""
    body = {"messages": USER} if "chat" in path else {"prompt": "hello"}
    for least, stop, shown in (
        (0, "w", "Hi "), (3, "w", "Hi "), (4, "w", "Hi wörld, bye."), (4, ["w", "ö"], "Hi w"),
        (8, "d,", "Hi wörl"), (9, "d,", "Hi wörl"), (10, "d,", "Hi wörld, bye."), (99, "d,", None),
    ):  # fmt: skip
        answer = Server.new().post(path, {**body, "stop": stop, "min_tokens": least, "max_tokens": 60})
        if shown is None:
            assert answer.status == 400 and answer.json["error"]["param"] == "min_tokens"
        else:
            (choice,) = answer.json["choices"]
            assert (choice["message"]["content"] if "chat" in path else choice["text"]) == shown


def test_defaults_are_openais():
    server = Server.new()
    chat(server)
    p = server.client.submitted[0].params
    assert (p.temperature, p.top_p, p.n, p.seed, p.logprobs) == (1.0, 1.0, 1, None, None)


def test_a_negative_seed_is_taken():
    server = Server.new()
    assert chat(server, seed=-1).status == 200
    assert server.client.submitted[0].seed == (1 << 64) - 1


def test_developer_is_system_and_parts_are_joined():
    server = Server.new()
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat(server, messages=[{"role": "developer", "content": "be kind"}, {"role": "user", "content": parts}])
    assert prompt_of(server) == "<system>be kind</system><user>ab</user><assistant>"


def test_template_arguments_are_passed():
    server = Server.new()
    chat(server, chat_template_kwargs={"shout": "oh"}, add_generation_prompt=False)
    assert prompt_of(server) == "<user>hello</user>!oh!"


def test_the_last_message_can_be_continued():
    server = Server.new()
    chat(server, messages=[*USER, {"role": "assistant", "content": "I am"}], continue_final_message=True)
    assert prompt_of(server) == "<user>hello</user><assistant>I am"


@pytest.mark.parametrize("model", ["fake-model", "nick", "tgi", None])
def test_the_model_goes_by_several_names(model):
    assert chat(model=model).status == 200


def test_neutral_values_of_unbuilt_fields_are_fine():
    answer = chat(tools=[], tool_choice="none", response_format={"type": "text"}, functions=None)
    assert answer.status == 200 and "x-ridgeline-warning" not in answer.headers


def test_ignored_fields_are_named_in_a_header():
    answer = chat(service_tier="auto", store=True, stream_options={"odd": 1}, **{"bad\r\nname": 1})
    assert answer.status == 200
    assert answer.headers["x-ridgeline-warning"] == "ignored fields: bad??name, service_tier, store, stream_options.odd"


def test_every_answer_has_a_request_id():
    assert len(chat().headers["x-request-id"]) == 32
    assert len(chat(stream=True).headers["x-request-id"]) == 32
    assert len(chat(n=0).headers["x-request-id"]) == 32


def test_a_partial_character_at_the_end_is_shown_as_replacement():
    (choice,) = chat(Server.new(answer=b"ok\xe2\x82")).json["choices"]
    assert choice["message"]["content"] == "ok\ufffd"


def test_best_of_and_beams():
    server = Server.new()
    body = chat(server, best_of=3, max_tokens=2).json
    assert len(body["choices"]) == 1 and body["choices"][0]["logprobs"] is None
    assert body["usage"]["completion_tokens"] == 6
    server = Server.new()
    body = chat(server, use_beam_search=True, n=3).json
    assert len(body["choices"]) == 3 and server.client.submitted[0].params.beams == 3
