"""Thoughts over a fake engine: reasoning_content whole and streamed, tokens counted, and thoughts on their way back."""

from __future__ import annotations

import pytest
from serving import Server

from ridgeline.text.reasoning import KNOWN

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "why?"}]
THINKS = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
OPENS = THINKS.replace("<assistant>", "<assistant><think>\n")


def ask(answer: str, template: str = THINKS, **fields):
    server = Server.new(answer=answer, template=template, context=2000)
    return server, server.post(CHAT, {"messages": USER, **fields})


@pytest.mark.parametrize(
    ("answer", "template"), [("<think>\nhm é\n</think>\n\nSo.", THINKS), ("hm é\n</think>\n\nSo.", OPENS)]
)
def test_a_thought_is_told_apart(answer, template):
    _, reply = ask(answer, template)
    (choice,) = reply.json["choices"]
    assert choice["message"] == {
        "role": "assistant", "content": "So.", "refusal": None, "reasoning_content": "hm é",
    }  # fmt: skip
    thought = answer.index("</think>") + len("</think>") + 1  # bytes: é has two
    usage = reply.json["usage"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == thought
    assert usage["completion_tokens"] == len(answer.encode()) + 1


def test_a_streamed_thought_comes_in_deltas_of_its_own():
    _, whole = ask("<think>a b</think>So.")
    _, reply = ask("<think>a b</think>So.", stream=True, stream_options={"include_usage": True})
    deltas = [e["choices"][0]["delta"] for e in reply.events[:-2]]
    assert "".join(d.get("reasoning_content", "") for d in deltas) == "a b"
    assert "".join(d.get("content", "") for d in deltas) == "So."
    assert not any("<" in str(d) for d in deltas)
    assert reply.events[-2]["usage"] == whole.json["usage"]


def test_a_thought_that_is_cut_off_is_all_there_is():
    _, reply = ask("hm hm", OPENS, max_tokens=4)
    (choice,) = reply.json["choices"]
    assert choice["message"]["content"] == "" and choice["message"]["reasoning_content"] == "hm h"
    assert choice["finish_reason"] == "length"
    assert reply.json["usage"]["completion_tokens_details"]["reasoning_tokens"] == 4


def test_an_answer_without_a_thought_has_none():
    _, reply = ask("So <think>no</think>")
    assert "reasoning_content" not in reply.json["choices"][0]["message"]
    assert reply.json["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


def test_a_template_that_does_not_think_leaves_its_marks():
    server = Server.new(answer="<think>a</think>b")
    body = server.post(CHAT, {"messages": USER}).json
    assert body["choices"][0]["message"]["content"] == "<think>a</think>b"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thoughts_go_back(field):
    server, _ = ask("x", messages=[*USER, {"role": "assistant", "content": "So.", field: "hm"}, *USER])
    prompt = bytes(b for t in server.client.submitted[0].prompt for b in server.client._tokenizer.token_bytes(t))
    assert b"<assistant><think>hm</think>So." in prompt


def test_no_effort_means_no_thought():
    server, reply = ask("So.", reasoning_effort="none")
    prompt = bytes(b for t in server.client.submitted[0].prompt for b in server.client._tokenizer.token_bytes(t))
    assert prompt.endswith(b"<think>\n\n</think>\n\n") and reply.json["choices"][0]["message"]["content"] == "So."


def test_a_call_behind_a_thought():
    tool = {"type": "function", "function": {"name": "now"}}
    answer = '<think>{"name": <tool_call></think>\n<tool_call>{"name": "now"}</tool_call>'
    server, reply = ask(answer, tools=[tool], tool_choice="required")
    message = reply.json["choices"][0]["message"]
    assert message["reasoning_content"] == '{"name": <tool_call>'
    assert message["tool_calls"][0]["function"]["name"] == "now"
    assert "thought? call" in server.client.submitted[0].params.grammar.value


def test_marks_of_several_kinds_are_known():
    assert {marks.opens for marks in KNOWN} >= {"<think>", "[THINK]"}
