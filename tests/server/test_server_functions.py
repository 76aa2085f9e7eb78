"""Tools under their old names: functions and function_call in requests, messages, answers and streams."""

from __future__ import annotations

import json

import pytest
from serving import TEMPLATE, Server, byte_tokenizer

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "weather?"}]
WEATHER = {
    "name": "get_weather",
    "description": "Tells it.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def ask(answer: str = CALL, **fields):
    server = Server.new(answer=answer, template=TEMPLATE, context=4000)
    return server, server.post(CHAT, {"messages": USER, "functions": [WEATHER], **fields})


def test_a_call_has_the_old_shape():
    server, reply = ask("I look.\n" + CALL)
    (choice,) = reply.json["choices"]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"] == {
        "role": "assistant", "content": "I look.", "refusal": None,
        "function_call": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
    }  # fmt: skip
    assert "get_weather" in byte_tokenizer().decode(server.client.submitted[0].prompt)


def test_a_streamed_call_has_the_old_shape():
    _, reply = ask(stream=True)
    choices = [e["choices"][0] for e in reply.events[:-1]]
    first, *rest = [c["delta"]["function_call"] for c in choices if "function_call" in c["delta"]]
    assert first == {"name": "get_weather", "arguments": ""} and all(set(r) == {"arguments"} for r in rest)
    assert json.loads("".join(r["arguments"] for r in rest)) == {"city": "Paris"}
    assert choices[-1]["finish_reason"] == "function_call"


def test_text_is_as_ever():
    _, reply = ask("No.")
    assert reply.json["choices"][0]["message"] == {"role": "assistant", "content": "No.", "refusal": None}


def test_one_call_is_forced_by_name():
    server, _ = ask(function_call={"name": "get_weather"})
    grammar = server.client.submitted[0].params.grammar.value
    assert grammar.startswith("start: call") and "call)*" not in grammar
    server, reply = ask(function_call="none")
    assert server.client.submitted[0].params.grammar is None
    assert reply.json["choices"][0]["message"]["content"] == CALL


def test_calls_and_results_go_back():
    history = [
        *USER,
        {
            "role": "assistant",
            "content": None,
            "function_call": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
        },
        {"role": "function", "name": "get_weather", "content": "rain"},
    ]
    server, reply = ask(messages=history)
    assert reply.status == 200
    prompt = byte_tokenizer().decode(server.client.submitted[0].prompt)
    assert CALL.replace("Paris", "Oslo") in prompt and "<tool_response>\nrain\n</tool_response>" in prompt


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": WEATHER}]}, "functions"),
        ({"functions": [{"name": "bad name"}]}, "functions"),
        ({"functions": [WEATHER, WEATHER]}, "functions"),
        ({"functions": []} | {"function_call": {"name": "get_weather"}}, "function_call"),
        ({"function_call": {"name": "unheard"}}, "function_call"),
        ({"function_call": "required"}, "function_call"),
        ({"function_call": {}}, "function_call"),
        ({"messages": [*USER, {"role": "function", "content": "x"}]}, "messages"),
        ({"messages": [*USER, {"role": "assistant", "function_call": {"arguments": "x"}}]}, "messages"),
    ],
)
def test_bad_functions_are_400_and_named(fields, param):
    server, reply = ask(**fields)
    assert reply.status == 400 and reply.json["error"]["param"] == param, reply.body
    assert server.client.submitted == []
