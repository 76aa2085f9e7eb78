"""A stream says byte for byte what the whole answer says, wherever tokens cut characters and stop strings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from serving import Answer, Server

PIECES = ["a", "b", "e\u0301", "\u00e9", "你好", "👩‍👩‍👧", "🇫🇷", "\u0915\u094d\u0937", " ", "\n", "END"]
TEXTS = st.lists(st.sampled_from(PIECES))
RAW = st.one_of(TEXTS.map("".join).map(str.encode), st.binary(max_size=24))  # a token of the fake is a byte
STOPS = st.lists(st.sampled_from(["b", "END", "你好", "👩", "\u0301", "a\n", " e"]), max_size=3, unique=True)


def asked(path: str, body: dict[str, Any], answer: bytes) -> tuple[Answer, Answer]:
    """The whole answer and the streamed one."""
    server = Server.new(answer)
    whole = server.post(path, body)
    streamed = path.replace("/generate", "/generate_stream")
    return whole, Server.new(answer).post(streamed, body | ({} if streamed != path else {"stream": True}))


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/generate"])
@settings(max_examples=40, deadline=None)
@given(answer=RAW, stop=STOPS, most=st.integers(1, 40))
@example(answer="👩‍👩‍👧 e\u0301END".encode(), stop=["END"], most=40)
@example(answer="你好".encode()[:4], stop=[], most=40)
def test_a_stream_says_what_the_whole_answer_says(path, answer, stop, most):
    if path == "/generate":
        parameters = {"max_new_tokens": most, "stop": stop, "details": True}
        whole, streamed = asked(path, {"inputs": "x", "parameters": parameters}, answer)
        last, text = streamed.events[-1], whole.json["generated_text"]
        assert last["generated_text"] == text
        assert [e["token"] for e in streamed.events] == whole.json["details"]["tokens"]
        assert last["details"]["finish_reason"] == whole.json["details"]["finish_reason"]
        return
    prompt = {"prompt": "x"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "x"}]}
    whole, streamed = asked(path, {**prompt, "max_tokens": most, "stop": stop or None}, answer)
    (choice,), pieces = whole.json["choices"], [e["choices"][0] for e in streamed.events[:-1]]
    said = [p["text"] if "text" in p else p["delta"].get("content", "") for p in pieces]
    assert "".join(said) == (choice["text"] if "text" in choice else choice["message"]["content"])
    assert pieces[-1]["finish_reason"] == choice["finish_reason"] and streamed.events[-1] == "[DONE]"


def test_what_a_step_brings_is_one_write():
    server = Server.new("abc")
    server.client.pace = 0.05
    writes: list[bytes] = []

    async def spied(scope: Any, receive: Any, send: Any) -> None:
        async def note(message: dict[str, Any]) -> None:
            writes.append(message.get("body", b""))
            await send(message)

        await app(scope, receive, note)

    app, server.app = server.app, spied  # type: ignore[assignment]
    spied.router = app.router  # type: ignore[attr-defined]
    answer = server.post("/v1/completions", {"prompt": "x", "n": 4, "stream": True})
    assert answer.events[-1] == "[DONE]" and max(w.count(b"data: {") for w in writes) == 4
