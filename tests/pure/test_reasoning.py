"""Thoughts told from answers: open from the prompt or from the text, and any cut of the text into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.text.pieces import CONTENT, REASONING, Piece, joined
from ridgeline.text.reasoning import KNOWN, ReasoningParser, is_open, marks_of

THINK = KNOWN[0]


def parse(inside: bool, *texts: str) -> list[tuple[str, str]]:
    parser = ReasoningParser(THINK, inside)
    return joined([piece for text in texts for piece in parser.push(text)] + parser.end())


def pieces(thought: str, content: str) -> list[Piece]:
    return joined([Piece(REASONING, thought), Piece(CONTENT, content)])


@pytest.mark.parametrize(
    ("inside", "text", "thought", "content"),
    [
        (False, "<think>\nhm\n</think>\n\nHi", "hm", "Hi"),
        (True, "hm\n</think>\n\nHi ", "hm", "Hi "),
        (True, "\n\n</think>\n\nHi", "", "Hi"),
        (True, "hm </thin", "hm </thin", ""),
        (True, "hm \n", "hm", ""),
        (False, "\n<think>a < b</think>c</think>", "a < b", "c</think>"),
        (False, " Hi <think>no</think>", "", " Hi <think>no</think>"),
        (False, "<thin", "", "<thin"),
        (False, "  ", "", "  "),
    ],
)
def test_a_thought_and_its_answer(inside, text, thought, content):
    assert parse(inside, text) == pieces(thought, content)


def test_marks_are_the_templates():
    assert marks_of("{% if x %}</think>{% endif %}") == THINK
    assert marks_of("{{ messages }}") is None
    assert is_open(THINK, "<assistant><think>\n") and not is_open(THINK, "<think>\n\n</think>\n")


def test_what_is_certain_shows_at_once():
    parser = ReasoningParser(THINK, inside=True)
    assert parser.push("one two </") == [Piece(REASONING, "one two")]
    assert parser.thinking is True
    assert parser.push("think>\nHi ") == [Piece(CONTENT, "Hi ")]
    assert parser.thinking is False


@given(
    st.booleans(),
    st.lists(st.sampled_from(["<think>", "</think>", "<", "</th", "ink>", " ", "\n", "a", "bc"]), max_size=9),
    st.data(),
)
def test_any_cut_gives_the_same_as_the_whole(inside, fragments, data):
    text = "".join(fragments)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    cut = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(inside, *cut) == parse(inside, text)
