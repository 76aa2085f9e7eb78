"""Calls whose parts stand between marks: tagged text, typed by the tool's schema, and JSON behind a marked name."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.text import conventions as c
from ridgeline.text.calls import CallParser
from ridgeline.text.conventions import convention_of
from ridgeline.text.pieces import ARGUMENTS, CALL, CONTENT, Piece, joined
from ridgeline.text.tagged import kinds_of
from spellings import cut, deepseek, glm, minimax, seed, xml

SCHEMAS = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"enum": ["c", "f"]},
            "place": {"$ref": "#/$defs/place"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "exact": {"type": "boolean"},
        },
        "$defs": {"place": {"type": "object"}},
    },
    "now": {},
}
PARIS = '{"city": "Paris", "days": 3}'


def parse(convention, *texts: str) -> list[Piece]:
    parser = CallParser(convention.syntax, SCHEMAS)
    return joined([piece for text in texts for piece in parser.push(text)] + parser.end())


SPELLED = {
    "qwen-coder": (c.QWEN_CODER, xml("get_weather", city="Paris", days="3")),
    "seed": (c.SEED, seed("get_weather", city="Paris", days="3")),
    "glm": (c.GLM, glm("get_weather", city="Paris", days="3")),
    "glm-4.7": (c.GLM, glm("get_weather", city="Paris", days="3").replace("\n", "")),
    "minimax": (c.MINIMAX, minimax("get_weather", city="Paris", days="3")),
    "deepseek": (c.DEEPSEEK, deepseek(("get_weather", PARIS))),
    "deepseek-3.1": (
        c.DEEPSEEK31,
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{PARIS}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "granite": (c.GRANITE, f'<|tool_call|>[{{"name": "get_weather", "arguments": {PARIS}}}]'),
    "phi4": (c.PHI4, f'functools[{{"name": "get_weather", "arguments": {PARIS}}}]'),
    "phi4-tags": (c.PHI4_TAGS, f'<|tool_call|>{{"name": "get_weather", "arguments": {PARIS}}}<|/tool_call|>'),
    "nemotron": (c.NEMOTRON, f'<TOOLCALL>[{{"name": "get_weather", "arguments": {PARIS}}}]</TOOLCALL>'),
    "command": (
        c.COMMAND,
        '<|START_ACTION|>[\n  {"tool_call_id": "0", "tool_name": "get_weather", "parameters": '
        f"{PARIS}}}\n]<|END_ACTION|>",
    ),
}


@pytest.mark.parametrize("name", SPELLED)
def test_a_call(name):
    convention, text = SPELLED[name]
    said, called, arguments = parse(convention, "Let me see.\n", text, "\n")
    assert said == Piece(CONTENT, "Let me see.") and called == Piece(CALL, "get_weather")
    assert arguments.kind == ARGUMENTS and json.loads(arguments.text) == json.loads(PARIS)


@pytest.mark.parametrize("name", SPELLED)
def test_what_is_no_tool_is_content(name):
    convention, text = SPELLED[name]
    wrong = text.replace("get_weather", "rm")
    assert parse(convention, wrong) == [Piece(CONTENT, wrong)]


PARALLEL = {
    "qwen-coder": xml("now") + "\n" + xml("get_weather", city="Paris", days="3"),
    "glm": glm("now") + "\n" + glm("get_weather", city="Paris", days="3"),
    "minimax": minimax("now").replace(
        "\n</minimax:tool_call>", minimax("get_weather", city="Paris", days="3").removeprefix("<minimax:tool_call>")
    ),
    "deepseek": deepseek(("now", "{}"), ("get_weather", PARIS)),
    "granite": f'<|tool_call|>[{{"name": "now", "arguments": {{}}}}, {{"name": "get_weather", "arguments": {PARIS}}}]',
    "command": '<|START_ACTION|>[{"tool_name": "now", "parameters": {}}, {"tool_name": "get_weather", "parameters": '
    + PARIS
    + "}]<|END_ACTION|>",
}


@pytest.mark.parametrize("name", PARALLEL)
def test_parallel_calls(name):
    pieces = parse(SPELLED[name][0], PARALLEL[name])
    assert [p.text for p in pieces if p.kind == CALL] == ["now", "get_weather"]
    assert [json.loads(p.text) for p in pieces if p.kind == ARGUMENTS] == [{}, json.loads(PARIS)]
    assert len(pieces) == 4


@pytest.mark.parametrize(
    ("members", "wanted"),
    [
        ({"city": "3"}, {"city": "3"}),
        ({"city": 'a "b"\n<c>\n'}, {"city": 'a "b"\n<c>\n'}),
        ({"city": ""}, {"city": ""}),
        ({"days": "three"}, {"days": "three"}),
        ({"exact": "True"}, {"exact": True}),
        ({"note": "None"}, {"note": None}),
        ({"note": "5"}, {"note": "5"}),
        ({"unit": "c"}, {"unit": "c"}),
        ({"place": '{"x": [1, 2.5]}'}, {"place": {"x": [1, 2.5]}}),
        ({"place": "{oops"}, {"place": "{oops"}),
        ({"unheard": "[1]"}, {"unheard": [1]}),
        ({"unheard": "NaN"}, {"unheard": "NaN"}),
        ({"unheard": "9" * 5000}, {"unheard": "9" * 5000}),
    ],
    ids=lambda x: str(x)[:30],
)
@pytest.mark.parametrize("write", [xml, glm, minimax, seed])
def test_values_are_what_the_schema_takes_them_for(write, members, wanted):
    convention = {xml: c.QWEN_CODER, glm: c.GLM, minimax: c.MINIMAX, seed: c.SEED}[write]
    (_, arguments) = parse(convention, write("get_weather", **members))
    assert json.loads(arguments.text) == wanted


def test_types_behind_references_that_go_in_circles():
    root = {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * 50}, "b": {"type": "integer"}}}
    assert kinds_of({"$ref": "#/$defs/a"}, root) == frozenset()
    assert kinds_of({"anyOf": [{"$ref": "#/$defs/b"}, {"type": "null"}]}, root) == {"integer", "null"}


def test_a_string_comes_as_it_is_written():
    parser = CallParser(c.QWEN_CODER.syntax, SCHEMAS)
    start = parser.push("<tool_call>\n<function=get_weather>\n<parameter=city>\nPar")
    assert start == [Piece(CALL, "get_weather"), Piece(ARGUMENTS, '{"city": "Par')]
    assert parser.push("is\n</para") == [Piece(ARGUMENTS, "is")]
    assert parser.push("meter>\n</function>\n</tool_call>") == [Piece(ARGUMENTS, '"}')]


def test_commands_marks_of_responses_say_nothing():
    text = "<|START_RESPONSE|>Hello.<|END_RESPONSE|>"
    assert parse(c.COMMAND, text) == [Piece(CONTENT, "Hello.")]


def test_a_word_that_opens_calls_elsewhere_is_a_word():
    assert parse(c.PHI4, "import functools, then") == [Piece(CONTENT, "import functools, then")]


FRAGMENTS = [
    *(text for _, text in SPELLED.values()),
    *PARALLEL.values(),
    "<tool_call>", "<function=", "now", ">", "\n", "<parameter=city>", "</parameter>", "</function>", "</tool_call>",
    "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "```", "{", "}", "]", ",", " ", "é", "functools", "[",
    "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<|END_ACTION|>", "<|START_RESPONSE|>",
]  # fmt: skip


@given(st.sampled_from([x for x, _ in SPELLED.values()]), st.lists(st.sampled_from(FRAGMENTS), max_size=6), st.data())
def test_any_cut_gives_the_same_as_the_whole(convention, fragments, data):
    text = "".join(fragments)
    whole = parse(convention, text)
    assert parse(convention, *cut(text, data)) == whole
    silent = convention.syntax.silent
    if not any(piece.kind == CALL for piece in whole) and not any(mark in text for mark in silent):
        assert "".join(piece.text for piece in whole) == text


@given(st.sampled_from(["city", "days", "place", "note", "unheard"]), st.text(max_size=30))
def test_any_value_makes_json(key, value):
    for write, convention, end in ((xml, c.QWEN_CODER, "</parameter>"), (glm, c.GLM, "</arg_value>")):
        if end in value:
            continue
        (_, arguments) = parse(convention, write("get_weather", **{key: value}))
        told = json.loads(arguments.text)
        assert list(told) == [key]
        if key == "city":
            assert told[key] == value


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("<tool_call>\n<function=example>\n<parameter=one>", "qwen-coder"),
        ("<seed:tool_call>\n<function=example>\n<parameter=one>", "seed"),
        ("<tool_call>{name}\n<arg_key>{key}</arg_key>", "glm"),
        ("'<｜tool▁calls▁begin｜>' + '```json'", "deepseek"),
        ("'<｜tool▁calls▁begin｜>' + name + '<｜tool▁sep｜>'", "deepseek-3.1"),
        ("respond with <|tool_call|> followed by a JSON list of tools used", "granite"),
        ('formatted as functools[{"name": [function name]', "phi4"),
        ('<|tool_call|>{"name": "foo"}<|/tool_call|>', "phi4-tags"),
        ("<|START_ACTION|>[", "command"),
        ('<tool_call>\n{"name": ', "hermes"),
    ],
)
def test_conventions_are_told_from_templates(source, name):
    assert convention_of(source).name == name
