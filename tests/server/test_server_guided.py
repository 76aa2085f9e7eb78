"""Grammars over HTTP: each API's fields reach the engine, refusals name what is wrong, and real answers match."""

from __future__ import annotations

import asyncio
import json
import re
import threading

import httpx
import jsonschema
import pytest
from serving import Answer, Server, until

from ridgeline.engine.params import Grammar
from ridgeline.server.hub import THREADS

MESSAGES = [{"role": "user", "content": "Tell me of Ada."}]
SCHEMA = {
    "type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"], "additionalProperties": False,
}  # fmt: skip


def grammar(path: str, body: dict) -> Grammar | None:
    server = Server.new()
    reply = server.post(path, body)
    assert reply.status == 200, reply.body
    return server.client.submitted[0].params.grammar


def chat(**more) -> Grammar | None:
    return grammar("/v1/chat/completions", {"messages": MESSAGES, **more})


def tgi(kind: str, value: object) -> dict:
    return {"inputs": "x", "parameters": {"grammar": {"type": kind, "value": value}, "max_new_tokens": 90}}


def test_openai_response_formats():
    assert chat(response_format={"type": "text"}) is None
    assert chat(response_format={"type": "json_object"}) == Grammar("json_object")
    for strict in (True, False):
        asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": strict}}
        found = chat(response_format=asked)
        assert found.kind == "json_schema" and json.loads(found.value) == SCHEMA


def test_tgis_response_formats():
    assert chat(response_format={"type": "regex", "value": "a+"}) == Grammar("regex", "a+")
    for kind in ("json", "json_object"):
        assert json.loads(chat(response_format={"type": kind, "value": SCHEMA}).value) == SCHEMA
    answer = Server.new().post("/v1/chat/completions", {"messages": MESSAGES, "response_format": {"type": "json"}})
    assert answer.status == 400 and answer.json["error"]["param"] == "response_format"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", tgi("regex", "a+")),
        ("/v1/chat/completions", {"messages": MESSAGES, "response_format": {"type": "json_object"}}),
        ("/v1/completions", {"prompt": "x", "guided_regex": "a+"}),
        ("/vertex", {"instances": [tgi("regex", "a+")]}),
    ],
)
def test_grammars_can_be_switched_off(path, body):
    for off in (True, False):
        answer = Server.new(disable_grammar_support=off).post(path, body)
        assert (answer.status == 200) != off
        assert not off or b"--disable-grammar-support" in answer.body


@pytest.mark.parametrize("wrap", [lambda n, v: {f"guided_{n}": v}, lambda n, v: {"structured_outputs": {n: v}}])
def test_vllm_fields(wrap):
    body = {"prompt": "x", "max_tokens": 90}
    assert grammar("/v1/completions", {**body, **wrap("regex", "a+")}) == Grammar("regex", "a+")
    assert json.loads(grammar("/v1/completions", {**body, **wrap("choice", ["a", "b"])}).value) == ["a", "b"]
    assert grammar("/v1/completions", {**body, **wrap("grammar", 'start: "a"')}) == Grammar("lark", 'start: "a"')
    for schema in (SCHEMA, json.dumps(SCHEMA)):
        assert json.loads(grammar("/v1/completions", {**body, **wrap("json", schema)}).value) == SCHEMA


def test_tgi_objects_have_only_listed_properties_unless_they_say_more():
    open_inside = {"properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "null"}}
    value = {"properties": {"one": {"properties": {}}, "two": {"items": {"anyOf": [open_inside]}}}}
    found = json.loads(grammar("/generate", tgi("json", value)).value)
    assert found["type"] == "object" and found["additionalProperties"] is False
    assert found["properties"]["one"] == {"type": "object", "additionalProperties": False, "properties": {}}
    assert found["properties"]["two"]["items"]["anyOf"][0] == {"type": "object", **open_inside}
    same = [tgi("json", json.dumps(value)), tgi("json_object", value), tgi("json_schema", {"schema": value})]
    assert [json.loads(grammar("/generate", body).value) for body in same] == [found] * 3
    assert grammar("/generate", tgi("regex", "[0-9]+")) == Grammar("regex", "[0-9]+")


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/generate", tgi("json", {"type": "string"}), 422, "'properties'"),
        ("/generate", tgi("jason", {}), 422, "grammar.type"),
        ("/generate", tgi("regex", 7), 422, "must be a string"),
        ("/generate", tgi("regex", "("), 422, "unclosed group"),
        ("/generate", tgi("json", {"properties": {"a/b": {"not": {}}}}), 422, "/properties/a~1b/not"),
        (
            "/v1/chat/completions",
            {"messages": MESSAGES, "response_format": {"type": "xml"}},
            400,
            "response_format.type",
        ),
        ("/v1/chat/completions", {"messages": MESSAGES, "guided_json": "{"}, 400, "not valid JSON"),
        ("/v1/chat/completions", {"messages": MESSAGES, "structured_outputs": {"tag": 1}}, 400, "not supported"),
        ("/v1/chat/completions", {"messages": MESSAGES, "guided_regex": "a", "guided_choice": ["b"]}, 400, "exclude"),
        (
            "/v1/chat/completions",
            {"messages": MESSAGES, "guided_json": SCHEMA, "max_tokens": 2},
            400,
            "max_tokens is 2;",
        ),
    ],
)
def test_refusals(path, body, status, said):
    reply = Server.new().post(path, body)
    assert reply.status == status and said in reply.body.decode()


def test_an_answer_that_may_be_cut_off_is_warned_of():
    body = {"messages": MESSAGES, "max_tokens": 3, "guided_grammar": 'start: "abcdefgh"'}
    reply = Server.new().post("/v1/chat/completions", body)
    assert "may be cut off" in reply.headers["x-ridgeline-warning"]
    reply = Server.new().post("/vertex", {"instances": [body, body]})
    assert reply.headers["x-ridgeline-warning"].count("may be cut off") == 1


async def _held(server: Server, count: int) -> tuple[threading.Event, list[asyncio.Task[Answer]]]:
    """So many requests whose grammars are compiled once the gate opens."""
    gate, compiler = threading.Event(), server.client.compiler
    inner = compiler._compile
    compiler._compile = lambda grammar: (gate.wait(20), inner(grammar))[1]
    bodies = [{"prompt": "x", "max_tokens": 90, "guided_regex": f"(Hi){{{i + 1}}}"} for i in range(count)]
    tasks = [asyncio.create_task(server.ask("POST", "/v1/completions", body)) for body in bodies]
    await until(lambda: len(compiler._known) == count)
    return gate, tasks


def test_requests_whose_grammars_are_compiled_keep_no_others_waiting():
    server = Server.new()

    async def main() -> None:
        async with server.running():
            gate, tasks = await _held(server, 2 * THREADS)
            try:
                plain = await asyncio.wait_for(server.ask("POST", "/v1/completions", {"prompt": "x"}), 5)
            finally:
                gate.set()
            assert plain.status == 200
            assert [answer.status for answer in await asyncio.gather(*tasks)] == [200] * 2 * THREADS

    asyncio.run(main())


def test_who_waits_in_vain_for_others_grammars_is_told_when_to_come_again(monkeypatch):
    monkeypatch.setattr("ridgeline.server.stream.BUDGET_S", 0.05)
    server = Server.new()
    server.client.compiler.trial = None  # to begin its process takes longer

    async def main() -> None:
        async with server.running():
            gate, tasks = await _held(server, 2)
            try:
                answers = await asyncio.gather(*tasks)
            finally:
                gate.set()
            assert [answer.status for answer in answers] == [429, 429] and "retry-after" in answers[0].headers
            monkeypatch.setattr("ridgeline.server.stream.BUDGET_S", 10.0)
            again = await server.ask("POST", "/v1/completions", {"prompt": "x", "guided_regex": "(Hi){2}"})
            assert again.status == 200

    asyncio.run(main())


@pytest.mark.model
def test_real_answers_match(live):
    with httpx.Client(base_url=live.url, timeout=120) as http:
        asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
        body = {"messages": MESSAGES, "max_tokens": 40, "seed": 1, "n": 3, "response_format": asked}
        for choice in http.post("/v1/chat/completions", json=body).json()["choices"]:
            assert choice["finish_reason"] == "stop"
            jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)
        with http.stream("POST", "/v1/chat/completions", json={**body, "n": 1, "stream": True}) as reply:
            lines = [json.loads(x[6:]) for x in reply.iter_lines() if x.startswith("data: {")]
        text = "".join(x["choices"][0]["delta"].get("content") or "" for x in lines)
        jsonschema.validate(json.loads(text), SCHEMA)
        given = {"inputs": "Ada", "parameters": {"details": True, "max_new_tokens": 40, "seed": 5, "temperature": 1.0}}
        given["parameters"]["grammar"] = {"type": "json", "value": {"properties": SCHEMA["properties"]}}
        reply = http.post("/generate", json=given).json()
        jsonschema.validate(json.loads(reply["generated_text"].removesuffix("<|im_end|>")), SCHEMA | {"required": []})
        assert reply["details"]["finish_reason"] == "eos_token"
        given["parameters"]["grammar"] = {"type": "regex", "value": "[0-9]{3}-[0-9]{4}"}
        assert re.fullmatch("[0-9]{3}-[0-9]{4}", http.post("/generate", json=given).json()["generated_text"])


@pytest.mark.model
def test_a_real_answer_that_may_call_tools_is_cut_off_as_one_that_may_not(live):
    tool = {"type": "function", "function": {"name": "see", "parameters": SCHEMA}}
    body = {"max_tokens": 20, "temperature": 0, "messages": [{"role": "user", "content": "Write a very long poem."}]}
    with httpx.Client(base_url=live.url, timeout=120) as http:
        reply = http.post("/v1/chat/completions", json={**body, "tools": [tool]}).json()
        assert reply["choices"][0]["finish_reason"] == "length" and reply["usage"]["completion_tokens"] == 20
        with http.stream("POST", "/v1/chat/completions", json={**body, "tools": [tool], "stream": True}) as lines:
            pieces = [json.loads(x[6:])["choices"][0] for x in lines.iter_lines() if x.startswith("data: {")]
    assert "".join(p["delta"].get("content") or "" for p in pieces) == reply["choices"][0]["message"]["content"]
    assert pieces[-1]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"unheard-of": 1, "type": 5}}}},
         "response_format"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"structured_outputs": {"grammar": "start ::: ("}}, "structured_outputs"),
    ],
)  # fmt: skip
def test_a_grammar_that_cannot_be_followed_is_named_as_the_client_named_it(fields, param):
    reply = Server.new().post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], **fields})
    assert reply.status == 400 and reply.json["error"]["param"] == param, reply.body


def test_a_response_format_of_tgis_has_its_value():
    server = Server.new(answer="{}")
    body = {"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_object", "value": SCHEMA}}
    server.post("/v1/chat/completions", body)
    grammar = server.client.submitted[0].params.grammar
    assert grammar.kind == "json_schema" and "properties" in grammar.value


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", '{"prompt": "x", "guided_json": {"default": %s}}'),
        ("/v1/chat/completions", '{"messages": [{"role": "user", "content": "x"}], "tool_choice": "required", '
         '"tools": [{"type": "function", "function": {"name": "f", "parameters": {"default": %s}}}]}'),
    ],
    ids=["schema", "tools"],
)  # fmt: skip
def test_what_is_just_not_too_deep_to_be_read_is_refused_where_it_is_too_deep_to_be_written(path, body):
    async def statuses() -> set[int]:
        server = Server.new(answer="{}", context=4000)
        async with server.running():
            depths = range(950, 1000)
            return {(await server.ask("POST", path, (body % ("[" * n + "]" * n)).encode())).status for n in depths}

    assert asyncio.run(statuses()) == {400}
