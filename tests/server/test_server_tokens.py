"""/tokenize and /detokenize as vLLM has them."""

from __future__ import annotations

import pytest
from serving import EOS_TEXT, Server, byte_tokenizer


def ids_of(text: str) -> list[int]:
    return byte_tokenizer().encode(text, add_special=False)


def test_a_prompt_to_ids():
    reply = Server.new().post("/tokenize", {"prompt": "hi", "return_token_strs": True})
    assert reply.json == {"count": 2, "max_model_len": 200, "tokens": ids_of("hi"), "token_strs": ["h", "i"]}


def test_a_conversation_to_ids():
    reply = Server.new().post("/tokenize", {"messages": [{"role": "user", "content": "hi"}]})
    assert reply.json["tokens"] == ids_of("<user>hi</user><assistant>")
    bare = {"messages": [{"role": "user", "content": "hi"}], "add_generation_prompt": False}
    assert Server.new().post("/tokenize", bare).json["tokens"] == ids_of("<user>hi</user>")


def test_the_texts_of_a_conversations_tokens():
    body = {"messages": [{"role": "user", "content": "hi"}], "return_token_strs": True}
    reply = Server.new().post("/tokenize", body)
    assert "".join(reply.json["token_strs"]) == "<user>hi</user><assistant>"
    assert "x-ridgeline-warning" not in reply.headers


def test_detokenize_gives_text_with_special_tokens():
    reply = Server.new().post("/detokenize", {"tokens": [*ids_of("hé"), 256]})
    assert reply.json == {"prompt": "hé" + EOS_TEXT}
    reply = Server.new().post("/detokenize", {"tokens": [257]})
    assert reply.status == 400 and reply.json["error"]["param"] == "tokens"


@pytest.mark.parametrize(("path", "body", "status"), [("/tokenize", {}, 422), ("/detokenize", {"tokens": "x"}, 400)])
def test_bad_requests_are_refused(path, body, status):
    assert Server.new().post(path, body).status == status  # /tokenize is TGI's too, and has its errors
    assert Server.new().post(path, {"prompt": "x", "tokens": [1], "model": "other"}).status == 404
