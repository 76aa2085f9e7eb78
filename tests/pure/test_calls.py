"""Tool calls found in text: each convention, what only looks like a call, and any cut of the text into pieces."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.text.calls import CallParser
from ridgeline.text.conventions import CONVENTIONS, GEMMA, GEMMA4, HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, written
from ridgeline.text.pieces import ARGUMENTS, CALL, CONTENT, Piece, joined
from spellings import cut

NAMES = ("get_weather", "now")


def parse(convention, *texts: str) -> list[Piece]:
    parser = CallParser(convention.syntax, NAMES)
    return joined([piece for text in texts for piece in parser.push(text)] + parser.end())


def call(name: str, arguments: str) -> list[Piece]:
    return [Piece(CALL, name), Piece(ARGUMENTS, arguments)]


def said(text: str) -> list[Piece]:
    return [Piece(CONTENT, text)]


PARIS = '{"city": "Paris", "days": 3}'
SPELLED = {
    "hermes": (HERMES, f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>'),
    "llama": (LLAMA, f'{{"name": "get_weather", "parameters": {PARIS}}}'),
    "llama-tag": (LLAMA, f'<|python_tag|>{{"type": "function", "name": "get_weather", "parameters": {PARIS}}}'),
    "mistral": (MISTRAL, f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {PARIS}, "id": "a1B2c3D4e"}}]'),
    "mistral-args": (MISTRAL_ARGS, f"[TOOL_CALLS]get_weather[ARGS]{PARIS}"),
    "mistral-id": (MISTRAL_ARGS, f"[TOOL_CALLS]get_weather[CALL_ID]a1B2c3D4e[ARGS]{PARIS}"),
    "gemma": (
        GEMMA,
        "<start_function_call>call:get_weather{city:<escape>Paris<escape>, days: 3}<end_function_call>",
    ),
    "gemma4": (GEMMA4, '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:3}<tool_call|>'),
}


@pytest.mark.parametrize("name", SPELLED)
def test_a_call(name):
    convention, text = SPELLED[name]
    kinds = parse(convention, text)
    assert kinds[0] == Piece(CALL, "get_weather") and len(kinds) == 2
    assert json.loads(kinds[1].text) == json.loads(PARIS)


@pytest.mark.parametrize("name", [n for n in SPELLED if n != "llama"])
def test_content_before_a_call_loses_only_the_blanks_between(name):
    convention, text = SPELLED[name]
    pieces = parse(convention, "Let me see. \n", text, "\n")
    assert pieces[0] == Piece(CONTENT, "Let me see.") and [p.kind for p in pieces[1:]] == [CALL, ARGUMENTS]


def test_parallel_calls():
    assert parse(HERMES, written("now", "{}") + "\n" + written("get_weather", PARIS)) == [
        *call("now", "{}"), *call("get_weather", PARIS),
    ]  # fmt: skip
    two = '[TOOL_CALLS][{"name": "now", "arguments": {}}, {"name": "get_weather", "arguments": ' + PARIS + "}]"
    assert parse(MISTRAL, two) == [*call("now", "{}"), *call("get_weather", PARIS)]
    assert parse(MISTRAL_ARGS, "[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]now{}") == call("now", "{}") * 2
    two = '{"name": "now", "parameters": {}}; {"name": "now", "parameters": {}}'
    assert parse(LLAMA, two) == call("now", "{}") * 2


@pytest.mark.parametrize("arguments", ["", ', "arguments": {}', ', "arguments": null', ', "arguments": ""'])
def test_a_call_without_arguments_has_an_empty_object(arguments):
    assert parse(HERMES, f'<tool_call>{{"name": "now"{arguments}}}</tool_call>') == call("now", "{}")


def test_arguments_may_come_first_or_as_a_string():
    assert parse(HERMES, f'<tool_call>{{"arguments": {PARIS}, "name": "get_weather"}}') == call("get_weather", PARIS)
    spelled = json.dumps({"name": "get_weather", "arguments": PARIS})
    assert parse(HERMES, f"<tool_call>{spelled}</tool_call>") == call("get_weather", PARIS)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>hello</tool_call>",
        "a < b <tool_cal",
        "<tool_call>",
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        '<tool_call>{"city": "Paris"}</tool_call>',
        '<tool_call>{"name": "now", }</tool_call>',
        '<tool_call>{"arguments": [1], "name": "now"}',
        "  \n ",
        "\n<tool_call> no\n\n",
        '<tool_call>{"name": "now"',
    ],
)
def test_what_only_looks_like_a_call_is_content(text):
    assert parse(HERMES, text) == said(text)


@pytest.mark.parametrize(
    "text", ['{"name": "Bob", "age": 5}', "{", 'So: {"name": "now", "parameters": {}}', "{}", "a;b"]
)
def test_an_answer_in_json_is_no_call(text):
    assert parse(LLAMA, text) == said(text)


def test_a_call_behind_what_looked_like_one():
    assert parse(HERMES, "<tool_call>no <tool_call>" + '{"name": "now"}') == [
        *said("<tool_call>no"),
        *call("now", "{}"),
    ]
    assert parse(MISTRAL, '[TOOL_CALLS]{"name": "now"}, and so on') == [*call("now", "{}"), *said(", and so on")]


def test_arguments_that_break_off_stay_and_the_rest_is_content():
    assert parse(HERMES, '<tool_call>{"name": "now", "arguments": {"a": oops}}') == [
        *call("now", '{"a": '), *said("oops}}"),
    ]  # fmt: skip
    assert parse(HERMES, '<tool_call>{"name": "now", "arguments": {"a": "x') == call("now", '{"a": "x')


def test_raw_control_characters_are_escaped():
    pieces = parse(HERMES, '<tool_call>{"name": "now", "arguments": {"code": "a\n\tb"}}')
    assert json.loads(pieces[1].text) == {"code": "a\n\tb"}


def test_gemmas_values():
    text = '<|tool_call>call:now{a:[1,-2.5e3,true],b:{c:<|"|>x"y<|z\n<|"|>,<|"|>d<|"|>:null},e:word,f:[]}<tool_call|>'
    (_, arguments) = parse(GEMMA4, text)
    wanted = {"a": [1, -2500.0, True], "b": {"c": 'x"y<|z\n', "d": None}, "e": "word", "f": []}
    assert json.loads(arguments.text) == wanted


def test_arguments_come_as_they_are_written():
    parser = CallParser(HERMES.syntax, NAMES)
    assert parser.push('Hm <tool_call>{"name": "now", ') == said("Hm")
    assert parser.push('"arguments": {"a": "b') == call("now", '{"a": "b')
    assert parser.push('c"') == [Piece(ARGUMENTS, 'c"')]
    assert parser.push("}}\n</tool") == [Piece(ARGUMENTS, "}")]
    assert parser.push("_call>\n") == parser.end() == []


FRAGMENTS = [
    *(text for _, text in SPELLED.values()),
    *(mark for c in CONVENTIONS for mark in (c.syntax.opens, *c.syntax.closes, c.syntax.more) if mark),
    '{"name": "now"', '"arguments": {', '"a": [1, "\\u00e9\\n"]',
    "}", "}}", " ", "\n", "x", "{", ",", "é", "call:now{", "[",
]  # fmt: skip


@given(st.sampled_from(CONVENTIONS), st.lists(st.sampled_from(FRAGMENTS), max_size=8), st.data())
def test_any_cut_gives_the_same_as_the_whole(convention, fragments, data):
    text = "".join(fragments)
    whole = parse(convention, text)
    assert parse(convention, *cut(text, data)) == whole
    if not any(piece.kind == CALL for piece in whole):
        assert "".join(piece.text for piece in whole) == text


@settings(max_examples=40)
@given(st.dictionaries(st.text(max_size=5), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5,
), max_size=4), st.integers(0, 2), st.booleans())  # fmt: skip
def test_any_arguments_pass_unchanged(arguments, indent, ascii):
    spelled = json.dumps(arguments, indent=indent or None, ensure_ascii=ascii)
    assert parse(HERMES, written("now", spelled)) == call("now", spelled)
