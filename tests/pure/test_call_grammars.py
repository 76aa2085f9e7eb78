"""Grammars of tool calls, as llguidance obeys them: what is a call passes and is parsed as one, nothing else passes."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from ridgeline.errors import InvalidRequest
from ridgeline.text.call_grammars import Thought, allowing, forcing, quoted
from ridgeline.text.calls import CallParser
from ridgeline.text.conventions import (
    COMMAND,
    CONVENTIONS,
    DEEPSEEK,
    GEMMA,
    GEMMA4,
    GLM,
    GRANITE,
    HERMES,
    LLAMA,
    MINIMAX,
    MISTRAL,
    MISTRAL_ARGS,
    PHI4,
    QWEN_CODER,
    written,
)
from ridgeline.text.pieces import CALL
from ridgeline.text.reasoning import KNOWN
from spellings import deepseek, glm, minimax, xml

SCHEMAS = {
    "get_weather": {
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/name"}, "days": {"type": "integer"}, "unit": {"enum": ["c", "f"]}},
        "required": ["city"],
        "$defs": {"name": {"type": "string"}},
    },
    "now": {},
}
SPECIAL = ("[TOOL_CALLS]", "<escape>", "[ARGS]", "</think>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<|END_ACTION|>")
WEATHER = written("get_weather", '{"city": "Oslo", "days": 3}')
NOW = written("now", "{}")
GEMMAS = "<start_function_call>call:get_weather{city:<escape>O{,}slo<escape>,unit:<escape>c<escape>}<end_function_call>"


@pytest.fixture(scope="module")
def passes():
    """Whether a grammar takes a whole text, over a vocabulary of bytes and SPECIAL tokens."""
    llguidance = pytest.importorskip("llguidance", reason="llguidance is not installed")
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken(text, special=True) for text in ("<|end|>", *SPECIAL)])
    tokenizer = llguidance.LLTokenizer(backend.to_str(), eos_token=256)

    def passes(grammar: str, text: str) -> bool:
        matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
        assert not matcher.is_error(), f"{matcher.get_error()}\n{grammar}"
        ids = backend.encode(text).ids
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    return passes


def spell(mark: str) -> str:
    return f"<[{257 + SPECIAL.index(mark)}]>" if mark in SPECIAL else quoted(mark)


FORCED = [
    (HERMES, WEATHER, True),
    (HERMES, f"{WEATHER}\n{NOW}", True),
    (HERMES, "Hello", False),
    (HERMES, f"Hello {NOW}", False),
    (HERMES, written("get_weather", "{}"), False),
    (HERMES, written("get_weather", '{"city": "Oslo", "more": 1}'), False),
    (HERMES, written("rm", "{}"), False),
    (LLAMA, '{"name": "now", "parameters": {}}', True),
    (LLAMA, '{"name": "now"}', False),
    (MISTRAL, '[TOOL_CALLS][{"name": "now", "arguments": {}}]', True),
    (MISTRAL_ARGS, "[TOOL_CALLS]now[ARGS]{}", True),
    (GEMMA, GEMMAS, True),
    (GEMMA, "<start_function_call>call:get_weather{}<end_function_call>", False),
    (GEMMA, "<start_function_call>call:now{}<end_function_call>", True),
    (GEMMA4, '<|tool_call>call:get_weather{city:<|"|>Oslo<|"|>,days:3}<tool_call|>', True),
    (QWEN_CODER, xml("get_weather", city="O\n<s>lo", days="3", unit="c"), True),
    (QWEN_CODER, xml("get_weather", city="Oslo"), True),
    (QWEN_CODER, xml("get_weather", days="3"), False),
    (QWEN_CODER, xml("get_weather", city="Oslo", unit="k"), False),
    (QWEN_CODER, xml("get_weather", city="Oslo", days="three"), False),
    (QWEN_CODER, f"{xml('now')}\n{xml('now')}", True),
    (QWEN_CODER, "Hello", False),
    (GLM, glm("get_weather", city="Oslo", days="3"), True),
    (GLM, glm("get_weather", days="3"), False),
    (GLM, glm("now"), True),
    (MINIMAX, minimax("get_weather", city="Oslo", days="3"), True),
    (DEEPSEEK, deepseek(("get_weather", '{"city": "Oslo"}')), True),
    (DEEPSEEK, deepseek(("get_weather", "{}")), False),
    (GRANITE, '<|tool_call|>[{"name": "now", "arguments": {}}]', True),
    (PHI4, 'functools[{"name": "now", "arguments": {}}]', True),
    (
        COMMAND,
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "now", "parameters": {}}\n]<|END_ACTION|>',
        True,
    ),
]


@pytest.mark.parametrize(("convention", "text", "good"), FORCED, ids=lambda x: getattr(x, "name", str(x))[:40])
def test_a_forced_call(passes, convention, text, good):
    grammar = forcing(convention, SCHEMAS, spell, several=True)
    assert passes(grammar, text) == good
    if good:
        parser = CallParser(convention.syntax, SCHEMAS)
        pieces = parser.push(text) + parser.end()
        assert pieces[0].kind == CALL and all(json.loads(p.text) is not None for p in pieces if p.kind == "arguments")


def test_one_call_at_a_time(passes):
    assert not passes(forcing(HERMES, SCHEMAS, spell, several=False), f"{NOW}\n{NOW}")


@pytest.mark.parametrize(
    ("convention", "text", "good"),
    [
        (HERMES, "Hello", True),
        (HERMES, "", True),
        (HERMES, f"I look. {NOW}\n{NOW}", True),
        (HERMES, "I <tool_call> look", False),
        (HERMES, f"{NOW} and more", False),
        (MISTRAL, 'So: [TOOL_CALLS][{"name": "now", "arguments": {}}]', True),
        (MISTRAL, "[TOOL_CALLS]no", False),
        (LLAMA, 'So {"name"', True),
        (LLAMA, '{"name": "Bob"}', False),
    ],
    ids=lambda x: getattr(x, "name", str(x))[:40],
)
def test_a_free_answer_whose_calls_are_whole(passes, convention, text, good):
    assert passes(allowing(convention, SCHEMAS, spell, several=True), text) == good


@pytest.mark.parametrize(
    ("inside", "text", "good"),
    [
        (True, f"hm <tool_call> no</think>\n\n{NOW}", True),
        (True, NOW, False),
        (False, f"<think>hm</think>\n\n{NOW}", True),
        (False, NOW, True),
        (False, f"hm {NOW}", False),
    ],
)
@pytest.mark.parametrize("spelled", [spell, quoted], ids=["special", "text"])
def test_a_thought_before_a_forced_call(passes, inside, text, good, spelled):
    grammar = forcing(HERMES, SCHEMAS, spelled, True, Thought(KNOWN[0], inside))
    if spelled is quoted:
        text = text.replace("</think>", "</thi_nk>")
        grammar = grammar.replace("</think>", "</thi_nk>")
    assert passes(grammar, text) == good


def test_a_grammar_grows_no_faster_than_its_schema():
    """A member per level, and many beside each other, none of them required."""

    def grammar_of(count: int) -> int:
        schema: dict = {"type": "object"}
        for _ in range(10):
            schema = {"properties": {f"m{i}": {"type": "string"} for i in range(count)} | {"inner": schema}}
        return len(forcing(GEMMA, {"f": schema}, spell, several=False))

    assert grammar_of(40) < 3 * grammar_of(20)


def test_definitions_that_members_carry_have_one_bound_for_all_tools():
    shape = {"anyOf": [{"$ref": "#/$defs/x"}, {"type": "integer"}]}
    schema = {"properties": {f"m{i}": shape for i in range(5)}, "$defs": {"x": {"description": "y" * 50_000}}}
    forcing(GLM, {"f": schema}, quoted, several=False)
    with pytest.raises(InvalidRequest, match="too large"):
        forcing(GLM, {f"f{i}": schema for i in range(6)}, quoted, several=False)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="too large"):
            forcing(GLM, {"f": {**schema, "properties": {f"m{i}": shape for i in range(2000)}}}, quoted, several=False)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_optional_members_in_gemmas_spelling(passes):
    schema = {"properties": {name: {"type": "integer"} for name in "abc"}}
    grammar = forcing(GEMMA4, {"f": schema}, quoted, several=False)
    for members, good in (
        ("", True),
        ("b:1", True),
        ("a:1,c:2", True),
        ("a:1,b:2,c:3", True),
        ("c:1,a:2", False),
        ("a:1,", False),
    ):
        assert passes(grammar, f"<|tool_call>call:f{{{members}}}<tool_call|>") == good


@pytest.mark.parametrize("convention", CONVENTIONS, ids=lambda c: c.name)
def test_every_convention_has_both(passes, convention):
    for write in (forcing, allowing):
        for several in (True, False):
            assert isinstance(passes(write(convention, SCHEMAS, spell, several, Thought(KNOWN[0], False)), "x"), bool)
