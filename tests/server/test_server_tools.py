"""Tools over a fake engine: what the prompt shows, what is forced, calls whole and streamed, and their way back."""

from __future__ import annotations

import json
from itertools import pairwise

import msgspec
import pytest
import serving
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import TEMPLATE, Server, byte_tokenizer

from ridgeline.errors import InvalidRequest
from ridgeline.server.schema import WARNING_HEADER, ChatRequest
from ridgeline.server.speech import Hearing, Speech, message
from ridgeline.server.tools import tool_use, unfollowed
from ridgeline.text.conventions import HERMES as TAGGED
from ridgeline.text.reasoning import KNOWN

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "weather?"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Tells it.", "parameters": SCHEMA}}
NOW = {"type": "function", "function": {"name": "now"}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
HERMES = (
    "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools><tool_call>{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.id }} {{ c.function.name }} "
    "{{ c.function.arguments | tojson }}]{% endfor %}"
    "{% if m.role == 'tool' %}({{ m.name }} {{ m.tool_call_id }}){% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPELLED = HERMES.replace("{{ c.function.arguments | tojson }}", "{{ 'args: ' + c.function.arguments }}")
MISTRAL = HERMES.replace("<tool_call>", "[TOOL_CALLS]")
BACK = [
    *USER,
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "call_0", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}},
    ]},
    {"role": "tool", "tool_call_id": "call_0", "content": "rain"},
]  # fmt: skip


def ask(answer: str = CALL, template: str = TEMPLATE, **fields):
    server = Server.new(answer=answer, template=template, context=4000)
    reply = server.post(CHAT, {"messages": USER, "tools": [WEATHER, NOW], **fields})
    return server, reply


def prompt_of(server: Server) -> str:
    return byte_tokenizer().decode(server.client.submitted[0].prompt)


def grammar_of(server: Server) -> str | None:
    grammar = server.client.submitted[0].params.grammar
    return None if grammar is None else grammar.value


def test_a_call_becomes_a_tool_call():
    _, reply = ask("I look.\n" + CALL)
    (choice,) = reply.json["choices"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "I look."
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function" and call["id"].startswith("call_") and len(call["id"]) == 29
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}


def test_a_call_alone_leaves_no_content():
    assert ask()[1].json["choices"][0]["message"]["content"] is None


def test_parallel_calls_have_ids_of_their_own_and_none_without_arguments_is_empty():
    _, reply = ask(CALL + '\n<tool_call>{"name": "now"}</tool_call>', n=2)
    ids = [call["id"] for choice in reply.json["choices"] for call in choice["message"]["tool_calls"]]
    assert len(set(ids)) == 4
    assert reply.json["choices"][1]["message"]["tool_calls"][1]["function"] == {"name": "now", "arguments": "{}"}


def test_text_stays_content():
    _, reply = ask("No <tool_call> here")
    (choice,) = reply.json["choices"]
    assert choice["message"] == {"role": "assistant", "content": "No <tool_call> here", "refusal": None}
    assert choice["finish_reason"] == "stop"


def test_a_call_that_is_cut_off_ends_with_length():
    _, reply = ask(max_tokens=CALL.index("Paris"))
    (choice,) = reply.json["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "'


def test_a_streamed_call_has_openais_deltas():
    _, reply = ask("Hm. " + CALL + '\n<tool_call>{"name": "now"}</tool_call>', stream=True)
    choices = [e["choices"][0] for e in reply.events[:-1]]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(c["delta"].get("content", "") for c in choices) == "Hm."
    parts = [part for c in choices for part in c["delta"].get("tool_calls", [])]
    first, *rest = [p for p in parts if p["index"] == 0]
    assert set(first) == {"index", "id", "type", "function"}
    assert first["function"] == {"name": "get_weather", "arguments": ""}
    assert all(set(p) == {"index", "function"} and set(p["function"]) == {"arguments"} for p in rest)
    assert "".join(p["function"]["arguments"] for p in rest) == '{"city": "Paris"}'
    first, *rest = [p for p in parts if p["index"] == 1]
    assert first["function"]["name"] == "now" and "".join(p["function"]["arguments"] for p in rest) == "{}"
    assert choices[-1] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls"}
    assert reply.events[-1] == "[DONE]"


def test_logprobs_cover_every_token_of_a_call():
    _, reply = ask("ab" + CALL, stream=True, logprobs=True)
    items = [i for e in reply.events[:-1] for i in (e["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert "".join(i["token"] for i in items) == "ab" + CALL


@pytest.mark.parametrize("choice", ["none", None])
def test_without_a_choice_of_tools_calls_are_text(choice):
    fields = {"tool_choice": "none"} if choice else {"tools": []}
    server, reply = ask(**fields)
    assert reply.json["choices"][0]["message"]["content"] == CALL
    assert "get_weather" not in prompt_of(server) and grammar_of(server) is None


def test_tools_are_told_in_the_system_message_where_the_template_has_none():
    server, _ = ask(messages=[{"role": "system", "content": "Be kind."}, *USER])
    prompt = prompt_of(server)
    assert prompt.startswith("<system>Be kind.\n\nYou may call") and prompt.endswith("<user>weather?</user><assistant>")
    assert json.dumps(WEATHER) in prompt
    assert prompt_of(ask()[0]).startswith("<system>You may call")


def test_tools_are_told_to_the_user_where_the_template_refuses_system_messages():
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    prompt = prompt_of(ask(template=refusal + TEMPLATE)[0])
    assert prompt.startswith("<user>You may call") and prompt.endswith("\n\nweather?</user><assistant>")


def test_a_template_with_tools_shows_them_itself():
    server, _ = ask(template=HERMES)
    assert prompt_of(server).startswith("<tools>{") and "You may call" not in prompt_of(server)
    assert '"parameters": {"type": "object", "properties": {}}' in prompt_of(server)  # of the tool that named none


def test_results_go_back_through_the_template():
    server, _ = ask(template=HERMES, messages=BACK)
    assert '<assistant>[call_0 get_weather {"city": "Oslo"}]<tool>rain(get_weather call_0)' in prompt_of(server)
    server, _ = ask(template=SPELLED, messages=BACK)
    assert '[call_0 get_weather args: {"city": "Oslo"}]' in prompt_of(server)
    server, reply = ask(template=MISTRAL, messages=BACK, answer='[TOOL_CALLS][{"name": "now"}]')
    id = reply.json["choices"][0]["message"]["tool_calls"][0]["id"]
    assert len(id) == 9 and id.isalnum() and "call_0" not in prompt_of(server)


def test_results_are_told_in_text_where_the_template_has_none():
    more = [*BACK, {"role": "tool", "tool_call_id": "x", "content": "snow"}]
    prompt = prompt_of(ask(messages=more)[0])
    told = "<user><tool_response>\nrain\n</tool_response>\n<tool_response>\nsnow\n</tool_response></user>"
    assert f"<assistant>{CALL.replace('Paris', 'Oslo')}</assistant>{told}<assistant>" in prompt


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", ["get_weather", "now"]),
        ({"type": "function", "function": {"name": "now"}}, ["now"]),
        ("now", ["now"]),
        (
            {"type": "allowed_tools", "allowed_tools": {
                "mode": "required", "tools": [{"type": "function", "function": {"name": "now"}}],
            }},
            ["now"],
        ),
    ],
)  # fmt: skip
def test_a_forced_call_has_a_grammar_of_what_may_be_called(choice, names):
    server, _ = ask(template=HERMES, tool_choice=choice)
    assert server.client.submitted[0].params.grammar.kind == "lark"
    text = grammar_of(server)
    assert text.startswith("start: call") and "TEXT" not in text
    assert [name for name in ("get_weather", "now") if f'\\"name\\": \\"{name}"' in text] == names
    assert ('"required": ["city"]' in text) == ("get_weather" in names)


def test_one_call_at_a_time_is_a_grammar_of_one_call():
    assert "call)*" in grammar_of(ask(template=HERMES, tool_choice="required")[0])
    now = {"type": "function", "function": {"name": "now"}}
    for fields in ({"tool_choice": "required", "parallel_tool_calls": False}, {"tool_choice": now}):
        assert "call)*" not in grammar_of(ask(template=HERMES, **fields)[0])


def test_a_free_choice_has_a_grammar_only_where_that_helps():
    assert grammar_of(ask(template=HERMES)[0]) is None
    assert grammar_of(ask()[0]).startswith("start: (TEXT | before body")  # this model was never taught to call
    assert grammar_of(ask(template=HERMES, parallel_tool_calls=False)[0]) is not None
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    server, _ = ask(template=HERMES, tools=[strict])
    assert grammar_of(server) is not None and "strict" not in prompt_of(server)


def test_marks_that_are_special_tokens_are_seen_and_named_in_grammars(monkeypatch):
    plain, _ = ask(template=HERMES, tool_choice="required")
    assert plain.client.submitted[0].params.skip_special_tokens and '"<tool_call>"' in grammar_of(plain)
    monkeypatch.setattr(serving, "EOS_TEXT", "<tool_call>")
    special, _ = ask("", template=HERMES, tool_choice="required")
    assert not special.client.submitted[0].params.skip_special_tokens
    assert "<[256]> body" in grammar_of(special) and '"<tool_call>"' not in grammar_of(special)


def test_gemmas_answers_end_where_results_begin():
    template = HERMES.replace("<tool_call>", "<start_function_call>")
    answer = "<start_function_call>call:get_weather{city:<escape>Oslo<escape>}<end_function_call>"
    _, reply = ask(answer + "<start_function_response>x", template=template)
    (choice,) = reply.json["choices"]
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city":"Oslo"}'
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "bad name"}}]}, "tools"),
        ({"tools": [NOW, NOW]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "array"}}}]}, "tools"),
        ({"tools": [{**NOW, "function": {"name": f"t{i}"}} for i in range(129)]}, "tools"),
        ({"tool_choice": "unheard"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "unheard"}}}, "tool_choice"),
        ({"tool_choice": {"type": "odd"}}, "tool_choice"),
        ({"tool_choice": {}}, "tool_choice"),
        ({"tool_choice": {"None": {"name": "now"}}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "x", "tools": [NOW]}}}, "tool_choice"),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "now"}}]}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"functions": [{"name": "x"}]}, "functions"),
    ],
)
def test_bad_tools_are_400_and_named(fields, param):
    server, reply = ask(**fields)
    assert reply.status == 400 and reply.json["error"]["param"] == param, reply.body
    assert server.client.submitted == []


GEMMAS = HERMES.replace("<tool_call>", "<start_function_call>")
CODERS = HERMES.replace("<tool_call>", "<tool_call><parameter=")


@pytest.mark.parametrize("template", [TEMPLATE, HERMES, GEMMAS, CODERS], ids=["told", "hermes", "gemma", "coder"])
@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"type": "string"}}, "required": 5},
        {"properties": [1]},
        {"properties": {"a": 5}},
        {"properties": {"a": {"enum": []}}},
        {"properties": {"a": {"$ref": "#/nowhere"}}},
        {"properties": {"": {"type": "string"}, " \n": {"type": "integer"}}},
    ],
    ids=str,
)
def test_odd_schemas_are_served_or_the_tools_are_named(template, schema):
    _, reply = ask(template=template, tools=[{"type": "function", "function": {"name": "f", "parameters": schema}}],
                   tool_choice="required")  # fmt: skip
    assert reply.status in (200, 400), reply.body
    if reply.status == 400:
        error = reply.json["error"]
        assert error["param"] == "tools" and "lark" not in error["message"] and "body_0" not in error["message"]


@pytest.mark.parametrize("template", [HERMES, CODERS], ids=["hermes", "coder"])
def test_a_keyword_of_a_tool_that_is_not_supported_is_named_with_its_tool_and_pointer(template):
    schema = {"properties": {"a": {"type": "array", "contains": {}, "uniqueItems": True}}, "required": ["a"]}
    around = {"properties": {"a": {"type": "string"}, "b": {"type": "array", "items": {"pattern": "^(?=x)y"}}}}
    for shape, places in (
        (schema, "/properties/a/contains, /properties/a/uniqueItems"),
        ({**around, "required": ["b"]}, "/properties/b/items/pattern"),
    ):
        tools = [WEATHER, {"type": "function", "function": {"name": "f", "parameters": shape}}]
        _, reply = ask(template=template, tools=tools, tool_choice="required")
        assert reply.status == 400 and reply.json["error"]["param"] == "tools"
        said = reply.json["error"]["message"]
        assert f"the parameters of 'f' cannot be followed at {places}: not supported" in said


def test_a_forced_call_for_which_there_is_no_room_is_refused():
    _, reply = ask(template=HERMES, tool_choice="required", max_tokens=5)
    assert reply.status == 400 and reply.json["error"]["param"] == "max_tokens"
    assert "max_tokens is 5; the shortest answer" in reply.json["error"]["message"]
    assert ask(template=HERMES, parallel_tool_calls=False, max_tokens=5)[1].status == 200


ENDLESS = {"properties": {"a": {"type": "string", "pattern": "(ab|cd){99}e"}}, "required": ["a"]}  # not found
UNSURE = "the answer may be cut off before its grammar allows an end"


def endless(**fields):
    tool = {"type": "function", "function": {"name": "f", "parameters": ENDLESS}}
    old = {"functions": [tool["function"]], "function_call": {"name": "f"}}
    return (old if fields.pop("old", False) else {"tools": [tool], "tool_choice": "required"}) | fields


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_a_forced_call_that_may_not_end_in_time_is_served_with_a_warning(stream, old):
    server = Server.new(answer=CALL, template=HERMES, context=4000)
    reply = server.post(CHAT, {"messages": USER, **endless(stream=stream, old=old, max_tokens=40)})
    assert reply.status == 200 and reply.headers[WARNING_HEADER] == UNSURE
    assert b"ridgeline_warnings_total 1" in server.app.state.hub.metrics.text(server.client, True)


def test_openais_client_shows_the_warning():
    openai = pytest.importorskip("openai", reason="the openai client is not installed (make test-all)")
    server = Server.new(answer=CALL, template=HERMES, context=4000)
    asked = {"model": "fake-model", "messages": USER, **endless(max_tokens=40)}
    with serving.listening(server.app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        whole = client.chat.completions.with_raw_response.create(**asked)
        assert whole.headers["x-ridgeline-warning"] == UNSURE and whole.parse().choices
        stream = client.chat.completions.with_raw_response.create(**asked, stream=True)
        assert stream.headers["x-ridgeline-warning"] == UNSURE and list(stream.parse())


def test_a_grammar_of_tools_is_not_shown_where_it_fails():
    wrong = InvalidRequest('the lark grammar cannot be followed: 12 | body_0: "x"', "grammar")
    assert str(unfollowed([WEATHER], wrong)) == "a tool's parameters cannot be followed"
    ours = InvalidRequest("the grammar has 9 bytes; at most 8 are allowed", "grammar")
    assert "at most 8" in str(unfollowed([WEATHER], ours))


def test_tools_beside_a_grammar_cannot_be_called_and_that_is_said():
    _, reply = ask(answer="{}", template=HERMES, response_format={"type": "json_object"})
    assert reply.status == 200 and "no tool can be called" in reply.headers["x-ridgeline-warning"]


def test_a_refusal_goes_back_as_it_was():
    parts = [{"type": "refusal", "refusal": "I will not."}]
    server, _ = ask(template=HERMES, messages=[*USER, {"role": "assistant", "content": parts}, *USER])
    assert "<assistant>I will not.<user>" in prompt_of(server)


@settings(max_examples=40)
@given(st.integers(0, 2), st.lists(st.integers(0, 200), max_size=6), st.booleans())
def test_deltas_of_any_cut_make_the_message_of_the_whole(which, cuts, inside):
    text = ("<think>hm</think> I look.\n" + CALL, f"hm\n</think>{CALL}\n{CALL}", "hm <tool_call> no</think>{")[which]
    hearing = Hearing(KNOWN[0], inside, TAGGED.syntax, {"get_weather"})
    places = sorted({min(cut, len(text)) for cut in (*cuts, 0, len(text))})
    speech = Speech(hearing, "x")
    deltas = [d for a, b in pairwise(places) for d in speech.push(text[a:b], last=b == len(text))]
    assert message(deltas) == message(Speech(hearing, "x").push(text, last=True))


def test_completions_take_no_tools():
    reply = Server.new().post("/v1/completions", {"prompt": "x", "tools": [NOW]})
    assert reply.status == 400 and reply.json["error"]["param"] == "tools"


def test_a_grammar_beside_tools_that_need_not_be_called():
    tool = {"type": "function", "function": {"name": "f"}}
    body = {"messages": [{"role": "user", "content": "x"}], "tools": [tool], "response_format": {"type": "json_object"}}
    server = Server.new('{"a":1}', context=2000)
    answer = server.post("/v1/chat/completions", body)
    assert answer.status == 200 and "no tool can be called" in answer.headers[WARNING_HEADER]
    assert server.client.submitted[0].params.grammar.kind == "json_object"
    forced = Server.new().post("/v1/chat/completions", {**body, "tool_choice": "required"})
    assert forced.status == 400 and forced.json["error"]["code"] == "tool_error"


def test_a_tool_without_parameters_takes_none():
    tool = {"type": "function", "function": {"name": "f"}}
    use = tool_use(msgspec.convert({"messages": [], "tools": [tool]}, ChatRequest))
    assert use.schemas == {"f": {"type": "object", "properties": {}, "additionalProperties": False}}
