"""Guides alone: answers are complete within their tokens, the same with and without jumps, and after a replay."""

from __future__ import annotations

import json
import random
import re

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from letters import END, OTHER_END, SCHEMAS, SPECIAL, Letters, closed, of_schema
from ridgeline.engine.params import Grammar, SamplingParams, check_params
from ridgeline.errors import InvalidRequest
from ridgeline.guidance.compiler import Compiler
from ridgeline.guidance.vocabulary import Vocabulary
from ridgeline.text.call_grammars import Thought, forcing, quoted
from ridgeline.text.conventions import CONVENTIONS, GEMMA, HERMES, QWEN_CODER
from ridgeline.text.reasoning import KNOWN

FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER
LETTERS = Letters()
SIZE = 320
COMPILER = Compiler(LETTERS, SIZE)
GRAMMARS = [*map(of_schema, SCHEMAS), Grammar("json_object"), Grammar("choice", '["yes", "no", "may be? (x)"]')]
GRAMMARS += [Grammar("regex", pattern) for pattern in ("[0-9]{3}-[0-9]{4}", "[a-z]+@[a-z]+[.]com", "(ab|c)*d")]
GRAMMARS += [
    Grammar("regex", pattern)
    for pattern in (".*foo", "(.*a){3}b?[^a]", "^(?i:no+)$|(?:[א-ת]x){2,4}", "a{2}.*[!-~].{2}z")
]
GRAMMARS += [of_schema({"type": "string", "pattern": pattern}) for pattern in ("foo", "@.*@$", "^[A-Z]{2}.*[0-9]")]


def least(grammar: Grammar) -> int:
    return len(COMPILER.compile(grammar).result().closing)


def allowed(mask) -> list[int]:
    return bits(mask.tobytes())


def bits(mask: bytes) -> list[int]:
    return np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")).tolist()


def answer(grammar: Grammar, limit: int, seed: int, jumps: bool, given: tuple[int, ...] = ()) -> list[int]:
    """Tokens of an answer; each is drawn by its place alone, as the sampler does it."""
    guide = COMPILER.compile(grammar).result().guide(limit, jumps)
    tokens, move = list(given), guide.replay(given)
    tokens += move.tokens
    while move.mask is not None:
        assert not move.failed
        choices = allowed(move.mask)
        assert choices and SPECIAL not in choices
        move = guide.advance(random.Random(1000 * seed + len(tokens)).choice(choices))
        tokens += move.tokens
    assert not move.failed
    assert len(tokens) <= limit
    assert tokens[-1] in (END, OTHER_END)
    return tokens


def check(grammar: Grammar, text: str) -> None:
    if grammar.kind == "regex":
        assert re.fullmatch(grammar.value, text)
    elif grammar.kind == "choice":
        assert text in json.loads(grammar.value)
    else:
        schema = json.loads(grammar.value or '{"type": "object"}')
        jsonschema.Draft202012Validator(schema, format_checker=FORMATS).validate(json.loads(text))


@pytest.mark.parametrize("grammar", GRAMMARS, ids=lambda g: g.value[:60])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999), more=st.integers(0, 40), cut=st.floats(0, 1))
def test_every_answer_is_complete_within_its_tokens(grammar, seed, more, cut):
    limit = least(grammar) + more
    tokens = answer(grammar, limit, seed, jumps=True)
    check(grammar, LETTERS.decode(tokens))
    assert answer(grammar, limit, seed, jumps=False) == tokens
    given = tuple(tokens[: int(cut * (len(tokens) - 1))])
    assert answer(grammar, limit, seed, True, given) == answer(grammar, limit, seed, False, given) == tokens


@pytest.mark.parametrize("grammar", GRAMMARS, ids=lambda g: g.value[:60])
def test_fewer_tokens_than_the_shortest_answer_has_are_refused_with_both_numbers(grammar):
    n = least(grammar)
    assert COMPILER.check(grammar, n) == []
    with pytest.raises(InvalidRequest, match=rf"max_tokens is {n - 1}; .* has {n} tokens") as refused:
        COMPILER.check(grammar, n - 1)
    assert refused.value.param == "max_tokens"


@pytest.mark.parametrize("grammar", GRAMMARS, ids=lambda g: g.value[:60])
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 999), more=st.integers(0, 200))
def test_whatever_way_is_known_its_tokens_end_the_answer(grammar, seed, more):
    guide = COMPILER.compile(grammar).result().guide(least(grammar) + more, False)
    move, draw = guide.first(), random.Random(seed)
    while move.mask is not None:
        assert 0 < len(guide.closing) <= guide.left
        matcher, (*before, end) = guide._matcher.deep_copy(), guide.closing
        assert matcher.consume_tokens(before) and END in bits(matcher.compute_bitmask()) and end == END
        move = guide.advance(draw.choice(allowed(move.mask)))


@pytest.mark.parametrize(
    ("text", "whole", "over"),
    [
        ("start: /(.|\\n)*/", "(?s:.*)", "(?!)"),
        ('start: /[a-z]*/ ("<" /[0-9]/ ">")?', "[a-z]*(<[0-9]>)?", ".*>"),
        ('start: "a"? "b"? "c"?', "a?b?c?", ".*c"),
        ('start: ("ab" | "c")*', "(ab|c)*", "(?!)"),
    ],
)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), limit=st.integers(1, 12), cut=st.floats(0, 1))
def test_what_need_not_be_whole_may_be_cut_off_where_it_could_end_or_go_on(text, whole, over, seed, limit, cut):
    grammar, found = Grammar("lark", text), []
    for share, jumps in ((0, True), (0, False), (cut, True)):
        given = tuple(found[0][: int(share * (len(found[0]) - 1))]) if found else ()
        guide, tokens = COMPILER.compile(grammar).result().guide(limit, jumps), list(given)
        move = guide.replay(given)
        tokens += move.tokens
        while move.mask is not None and len(tokens) < limit:
            move = guide.advance(random.Random(1000 * seed + len(tokens)).choice(allowed(move.mask)))
            tokens += move.tokens
        found.append(tokens)
    assert found[0] == found[1] == found[2] and len(tokens) <= limit
    ended = tokens[-1] in (END, OTHER_END)
    assert ended or len(tokens) == limit
    said = b"".join(LETTERS.token_bytes(t) for t in tokens[: -1 if ended else None]).decode("latin-1")
    assert re.fullmatch(whole, said)
    assert ended or not re.fullmatch(over, said)


FACE = "\N{GRINNING FACE}"
SPLIT = [b"a", *(bytes([byte]) for byte in FACE.encode())]
MIXED = [b"a\xf0\x9f", b"\x98\x80b\xf0\x9f\x98", b"\x80", b"b"]


class Torn(Letters):
    """Tokens that end within characters, too."""

    vocab_size = Letters.vocab_size + 2

    def __init__(self):
        super().__init__()
        self._words |= {Letters.vocab_size + i: word for i, word in enumerate(MIXED[:2])}
        self.ids = {word: i for i, word in self._words.items()}


TORN = Torn()
TEARING = Compiler(TORN, SIZE)


@pytest.mark.parametrize("jumps", [True, False])
@pytest.mark.parametrize("limit", range(1, 10))
@pytest.mark.parametrize("text", ["start: /(.|\\n)*/", 'start: TEXT | TEXT "<" /[0-9]{9}/\nTEXT: /(.|\\n)*/'])
@pytest.mark.parametrize("words", [SPLIT, MIXED], ids=["split", "mixed"])
def test_text_may_be_cut_off_within_a_character(words, text, limit, jumps):
    said = [TORN.ids[word] for word in (words * limit)[:limit]]
    guide, tokens = TEARING.compile(Grammar("lark", text)).result().guide(limit, jumps), []
    move = guide.first()
    for token in said:
        assert token in allowed(move.mask)
        move = guide.advance(token)
        tokens += move.tokens
    assert tokens == said and guide.left == 0 and move.mask is not None


@pytest.mark.parametrize("words", [SPLIT[:2], MIXED[:1]], ids=["split", "mixed"])
@pytest.mark.parametrize("text", [f'start: "a" ("{FACE}c")?', f'start: ("a{FACE}")?'])
def test_a_character_is_not_begun_at_the_limit_where_it_cannot_be_cut_off(words, text):
    guide = TEARING.compile(Grammar("lark", text)).result().guide(len(words), True)
    move, tokens = guide.first(), []
    for word in words:
        if move.mask is not None:
            move = guide.advance(TORN.ids[word])
            tokens += move.tokens
    assert tokens[-1] == END


def test_the_shortest_answers_are_short():
    assert least(Grammar("json_object")) == 3  # { } and the end
    assert least(Grammar("regex", "a*")) == 1
    assert least(Grammar("choice", '["abcabcabc", "x"]')) == 2
    assert least(of_schema(closed({"text": {"type": "string", "minLength": 400}}))) < 130


def test_a_keyword_that_is_not_supported_is_named_by_its_json_pointer():
    schema = {"properties": {"a/b": {"type": "array", "contains": {}}}, "$defs": {"x": {"if": {}}}, "type": "object"}
    with pytest.raises(InvalidRequest, match="/properties/a~1b/contains"):
        COMPILER.check(of_schema(schema), 100)
    with pytest.raises(InvalidRequest, match="/items/anyOf/1/format"):
        both = {"items": {"anyOf": [{"type": "null"}, {"type": "string", "format": "zz"}]}, "type": "array"}
        COMPILER.check(of_schema(both), 100)
    with pytest.raises(InvalidRequest, match="/minProperties"):
        COMPILER.check(of_schema({"type": "object", "minProperties": 2}), 100)


@pytest.mark.parametrize("options", [{"item_separator": "X"}, {"lenient": True}, {"whitespace_flexible": True}, {}])
def test_a_schema_has_no_say_in_how_json_is_spelled(options):
    for schema, place in (({}, ""), ({"properties": {"a": {}}}, "/properties/a")):
        inner = schema["properties"]["a"] if place else schema
        inner["x-guidance"] = options
        with pytest.raises(InvalidRequest, match=f"at {place}/x-guidance: not supported"):
            COMPILER.check(of_schema(schema), 100)
    assert COMPILER.check(of_schema(closed({"x-guidance": {"const": options}})), 100) == []


BEHIND_A = Grammar("regex", "(a|b|ab|ba)*.*a.{12}b")  # of which a lexer makes a state for every 13 letters


@pytest.fixture
def bounded(monkeypatch):
    """A compiler of grammars whose lexers may have few states."""
    from llguidance import LLParserLimits

    def make(states: int) -> Compiler:
        monkeypatch.setattr(
            "llguidance.LLParserLimits", lambda **more: LLParserLimits(**{**more, "max_lexer_states": states})
        )
        return Compiler(LETTERS, SIZE)

    return make


@pytest.mark.parametrize("states", [1000, 1500, 2000])
def test_what_one_answer_spends_is_there_again_for_the_next(bounded, states):
    compiler = bounded(states)
    first = compiler.compile(BEHIND_A).result()
    for seed in range(9):
        draw = random.Random(seed)
        guide, tokens = compiler.compile(BEHIND_A).result().guide(draw.randrange(40, 200), True), []
        move = guide.first()
        while move.mask is not None:
            letters = [i for i in allowed(move.mask) if LETTERS.token_bytes(i) in (b"a", b"b")]
            move = guide.advance(draw.choice(letters or allowed(move.mask)))
            tokens += move.tokens
        assert not move.failed
        check(BEHIND_A, LETTERS.decode(tokens))
    assert first.spent and compiler.compile(BEHIND_A).result() is not first


def test_no_way_is_found_behind_a_bound(bounded):
    compiled = bounded(1000).compile(BEHIND_A).result()
    matcher, draw, ways = compiled._matcher.deep_copy(), random.Random(1), compiled._ways
    matcher.compute_bitmask()
    assert matcher.consume_tokens(LETTERS.encode("ba" * 9, False))
    other = matcher.deep_copy()  # shares its lexer
    for _ in range(2000):
        matcher.validate_tokens(draw.choices(LETTERS.encode("ba", False), k=60))
    assert not other.is_error()
    for way in (ways.within(other, compiled.closing, 64, 99), ways.shortest(other, None, 64)):
        assert way is None


@pytest.mark.parametrize(
    ("format", "good", "bad"),
    [
        ("date", ["2024-02-29", "0001-01-31", "2000-02-29"], ["2023-02-29", "0000-01-01", "1900-02-29", "2024-04-31"]),
        ("time", ["00:00:00Z", "23:59:59.5+14:00"], ["23:59:60Z", "24:00:00Z", "10:00:00"]),
        ("date-time", ["1999-12-31T23:59:59-08:00"], ["2023-02-29T00:00:00Z", "1999-12-31 00:00:00Z"]),
    ],
)
def test_days_and_times_are_those_of_the_calendar(format, good, bad):
    for schema in (
        {"type": "string", "format": format},
        {"type": "string", "format": format, "allOf": [{"minLength": 1}]},
    ):
        matcher = COMPILER.compile(of_schema(schema)).result()._matcher
        for text in (*good, *bad):
            tokens = [*LETTERS.encode(json.dumps(text), False), END]
            assert (matcher.validate_tokens(tokens) == len(tokens)) == (text in good), text
    assert COMPILER.check(of_schema(closed({"format": {"const": "date"}})), 100) == []


def test_names_cannot_be_spelled_around_by_escapes():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}
    matcher = COMPILER.compile(of_schema(schema)).result()._matcher
    for text, fits in (('{"a":1,"b":"x"}', True), ('{"a":1,"\\u0061":"x"}', False)):
        tokens = [*LETTERS.encode(text, False), END]
        assert (matcher.validate_tokens(tokens) == len(tokens)) == fits


def test_a_property_may_be_called_like_a_keyword_that_is_not_supported():
    assert COMPILER.check(of_schema(closed({"contains": {"type": "boolean"}, "not": {"const": "if"}})), 100) == []


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        (Grammar("sql", "x"), "grammar kind 'sql' is not known"),
        (Grammar("json_schema", "{"), "not valid JSON"),
        (Grammar("json_schema", "false"), "must be an object"),
        (Grammar("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000), "nested|recursion"),
        (Grammar("json_schema", '{"enum": []}'), "Unsatisfiable"),
        (of_schema({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}), "no answer"),
        (Grammar("regex", "(" * 300 + "a" + ")" * 300), "invalid regex"),
        (Grammar("regex", "a" * (1 << 20)), "at most 262144"),
        (Grammar("choice", "[]"), "0 choices"),
        (Grammar("choice", '["a", 1]'), "list of strings"),
        (Grammar("lark", "start: nothing"), "unknown name"),
        (Grammar("lark", "start: " + "(" * 9000 + '"a"' + ")" * 9000), "nested"),
    ],
)
def test_bad_grammars_are_refused_in_words(grammar, said):
    with pytest.raises(InvalidRequest, match=said) as refused:
        COMPILER.check(grammar, 1 << 20)
    assert refused.value.param == "grammar"
    assert len(str(refused.value)) < 1000


def test_a_chain_of_rules_as_long_as_a_grammar_may_be_does_not_overflow_the_stack():
    rules = 12_000
    chain = "\n".join(f'a{i}: "b" a{i + 1}' for i in range(rules))
    grammar = Grammar("lark", f'start: a0\n{chain}\na{rules}: "x"\n')
    assert 200_000 < len(grammar.value) < 262_144
    assert COMPILER.check(grammar, 100) == ["the answer may be cut off before its grammar allows an end"]


CITY = {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city", "days"]}


@pytest.mark.parametrize("convention", CONVENTIONS, ids=lambda c: c.name)
@pytest.mark.parametrize("thought", [None, Thought(KNOWN[0], True)], ids=["plain", "thought"])
def test_a_forced_call_is_complete_or_refused_with_both_numbers(convention, thought):
    grammar = Grammar("lark", forcing(convention, {"f": CITY}, quoted, True, thought), complete=True)
    n = least(grammar)
    with pytest.raises(InvalidRequest, match=rf"max_tokens is {n - 1}; .* has {n} tokens"):
        COMPILER.check(grammar, n - 1)
    assert COMPILER.check(grammar, n) == []
    *tokens, end = answer(grammar, n + 8, 1, jumps=True)
    matcher = COMPILER.compile(grammar).result()._matcher.deep_copy()
    assert end in LETTERS.eos_ids and matcher.consume_tokens(tokens) and matcher.is_accepting()


def test_names_that_look_like_a_grammars_marks_do_no_harm():
    names = ["A <[999999999]>", "A <[1]>", "B/ ", 'C "x', "D/ \\."]
    tools = {f"f{i}": {"properties": {name: {"enum": [name, "a"]}}} for i, name in enumerate(names)}
    for convention in (HERMES, GEMMA, QWEN_CODER):
        grammar = Grammar("lark", forcing(convention, tools, quoted, True), complete=True)
        assert COMPILER.check(grammar, 200) == []


def test_gbnf_is_read_too():
    assert COMPILER.check(Grammar("lark", 'root ::= "a" ("b" | "c")*'), 10) == []


@pytest.mark.parametrize("more", [{"min_tokens": 1}, {"ignore_eos": True}, {"bad_words": ((1,),)}, {"forced": (1,)}])
def test_what_a_grammar_would_have_to_break_does_not_go_with_one(more):
    params = SamplingParams(grammar=Grammar("json_object"), **more)
    with pytest.raises(InvalidRequest, match=f"{next(iter(more))} does not go with a grammar"):
        check_params(params, SIZE)
    with pytest.raises(InvalidRequest, match="grammar does not go with beam search"):
        check_params(SamplingParams(beams=2, grammar=Grammar("json_object")), SIZE)


class Spaced(Letters):
    """Puts a space in front of every text, as SentencePiece does."""

    def encode(self, text: str, add_special: bool, parse_special: bool = True) -> list[int]:
        return super().encode(" " + text, add_special)


def test_a_tokenizer_that_begins_texts_with_a_space_spells_them_without():
    wrapper = Vocabulary(Spaced(), SIZE).matching
    assert wrapper.decode_bytes(wrapper.tokenize_str('{"name":"x"}')) == b'{"name":"x"}'
    assert Compiler(Spaced(), SIZE).check(of_schema(SCHEMAS[0]), 100) == []
