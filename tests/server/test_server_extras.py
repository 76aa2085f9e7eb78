"""vLLM's additions to OpenAI's routes: scores of prompts, token ids, echo in chats, usage throughout a stream."""

from __future__ import annotations

import msgspec
import pytest
import serving
import tokenizers
from serving import ANSWER, Server, byte_tokenizer
from tokenizers import decoders, models, pre_tokenizers

from ridgeline.server.schema import ChatRequest
from ridgeline.text.tokenizer import SpecialTokens, Tokenizer

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "hello"}]
BODIES = {CHAT: {"messages": USER}, COMPLETIONS: {"prompt": "xyz", "max_tokens": 50}}


def ask(path: str, server: Server | None = None, **fields):
    return (server or Server.new()).post(path, {**BODIES[path], **fields})


def ids_of(text: str) -> list[int]:
    return byte_tokenizer().encode(text, add_special=False)


@pytest.mark.parametrize("path", BODIES)
def test_scores_of_the_prompt(path):
    server = Server.new()
    body = ask(path, server, prompt_logprobs=2).json
    told = body["prompt_logprobs"] if path == CHAT else body["choices"][0]["prompt_logprobs"]
    prompt = server.client.submitted[0].prompt
    assert told[0] is None and len(told) == len(prompt)
    for id, entry in zip(prompt[1:], told[1:], strict=True):
        assert len(entry) == 3 and entry["0"] == {"logprob": -0.5, "rank": 1, "decoded_token": "!"}
        assert entry[str(id)] == {"logprob": -2.0, "rank": None, "decoded_token": byte_tokenizer().token_text(id)}
    assert body["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("path", BODIES)
def test_scores_of_the_prompt_leave_those_of_the_answer_as_they_are(path):
    given = {"logprobs": True, "top_logprobs": 1} if path == CHAT else {"logprobs": 1}
    plain, both = (ask(path, **given, **more).json["choices"][0] for more in ({}, {"prompt_logprobs": 4}))
    assert plain["logprobs"] == both["logprobs"]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "fields", [{"prompt_logprobs": 21}, {"prompt_logprobs": -1}, {"prompt_logprobs": 1, "stream": True}]
)
def test_scores_that_cannot_be_had(path, fields):
    reply = ask(path, **fields)
    assert reply.status == 400 and reply.json["error"]["param"] == "prompt_logprobs"


@pytest.mark.parametrize("path", BODIES)
def test_token_ids(path):
    server = Server.new()
    body = ask(path, server, return_token_ids=True).json
    (choice,) = body["choices"]
    assert choice["token_ids"] == [*ids_of(ANSWER), 256]
    assert (body if path == CHAT else choice)["prompt_token_ids"] == list(server.client.submitted[0].prompt)


@pytest.mark.parametrize("path", BODIES)
def test_token_ids_of_a_stream(path):
    server = Server.new()
    *chunks, _ = ask(path, server, return_token_ids=True, stream=True, stop="zzz").events
    streamed = [id for chunk in chunks for id in chunk["choices"][0].get("token_ids", ())]
    assert streamed == [*ids_of(ANSWER), 256]
    told = [chunk if path == CHAT else chunk["choices"][0] for chunk in chunks]
    assert [x["prompt_token_ids"] for x in told if "prompt_token_ids" in x] == [list(server.client.submitted[0].prompt)]
    assert told[0]["prompt_token_ids"]


def test_a_dropped_token_has_no_id():
    (choice,) = ask(COMPLETIONS, echo=True, max_tokens=0, return_token_ids=True).json["choices"]
    assert "token_ids" not in choice and choice["prompt_token_ids"] == ids_of("xyz")


@pytest.mark.parametrize("path", BODIES)
def test_usage_throughout_a_stream(path):
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last, _ = ask(path, stream=True, stream_options=options, n=2).events
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == last["usage"]["completion_tokens"] > counts[0]
    assert last["choices"] == [] and chunks[-1]["usage"] == last["usage"]
    *chunks, _ = ask(path, stream=True, stream_options={"continuous_usage_stats": True}).events
    assert all("usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
def test_echo_in_a_chat_puts_the_last_message_in_front(stream):
    messages = [*USER, {"role": "assistant", "content": "I say: "}]
    reply = ask(CHAT, messages=messages, continue_final_message=True, echo=True, n=2, stream=stream)
    texts = ["", ""]
    for event in reply.events[:-1] if stream else [reply.json]:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta" if stream else "message"].get("content", "")
    assert texts == [f"I say: {ANSWER}"] * 2


def test_echo_in_a_chat_is_of_the_assistants_words_alone():
    assert ask(CHAT, echo=True).json["choices"][0]["message"]["content"] == ANSWER


def test_what_the_template_does_not_read_is_said():
    reply = ask(CHAT, reasoning_effort="high", chat_template_kwargs={"shout": 1, "whisper": 2})
    assert reply.headers["x-ridgeline-warning"] == "ignored fields: chat_template_kwargs.whisper, reasoning_effort"
    assert ask(CHAT, Server.new(strict=True), reasoning_effort="high").status == 400


MARKS = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")


@pytest.fixture
def infilling(monkeypatch) -> Server:
    """Its vocabulary has StarCoder's marks."""

    def marked(template: str | None) -> Tokenizer:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        backend = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([tokenizers.AddedToken(text, special=True) for text in ("<|end|>", *MARKS)])
        return Tokenizer(backend, SpecialTokens(eos_ids=frozenset({256}), eos_token="<|end|>"))

    info = msgspec.structs.replace(serving.engine_info(), vocab=260)
    monkeypatch.setattr(serving, "engine_info", lambda context: info)
    monkeypatch.setattr(serving, "byte_tokenizer", marked)
    return Server.new()


def test_a_suffix_fills_in_the_middle(infilling):
    assert ask(COMPLETIONS, infilling, prompt="ab", suffix="cd<fim_suffix>").status == 200
    prompt = infilling.client.submitted[0].prompt
    assert [id for id in prompt if id > 256] == [257, 258, 259]  # a mark within a text is text
    text = infilling.client._tokenizer.decode(prompt, skip_special=False)
    assert text == "<fim_prefix>ab<fim_suffix>cd<fim_suffix><fim_middle>"


@pytest.mark.parametrize("fields", [{"prompt": [1, 2]}, {"echo": True}])
def test_a_suffix_goes_with_text_alone(infilling, fields):
    reply = ask(COMPLETIONS, infilling, suffix="x", **fields)
    assert reply.status == 400 and reply.json["error"]["param"] == "suffix"


def test_a_suffix_needs_a_model_for_it():
    reply = ask(COMPLETIONS, suffix="x")
    assert reply.status == 400 and "fills in the middle" in reply.json["error"]["message"]
    assert ask(COMPLETIONS, suffix="").status == 200
    assert "suffix" not in ChatRequest.__struct_fields__ and ask(CHAT, suffix="x").status == 400


def test_a_fault_has_its_own_code_wherever_it_is_found():
    function = {"name": "f", "parameters": {"type": 5}}
    for body in ({"functions": [function]}, {"tools": [{"type": "function", "function": function}]}):
        answer = Server.new().post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], **body})
        assert answer.status == 400 and answer.json["error"]["code"] == "tool_error"
    for path, body in (("/v1/embeddings", {"input": "x" * 300}), ("/v1/completions", {"prompt": "x" * 300})):
        for limits in ({}, {"max_input_tokens": 20}):
            assert Server.new(**limits).post(path, body).json["error"]["code"] == "context_length_exceeded"
