"""Examples of patterns: short texts that Python's own regular expressions match, or none; all of a text is read."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.guidance.patterns import example

LITERAL = st.sampled_from(
    ["a", "foo", "é", " ", "\\.", "\\\\", ".", "\\d", "\\w", "\\S", "\\x41", "[^a]", "[a-c_]", "[\\d-]", "[]x]"]
)
PATTERN = st.recursive(
    LITERAL,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,}", "{0,3}", "+?"])).map(
            lambda p: f"({p[0]}){p[1]}"
        ),
    ),
    max_leaves=12,
)


@given(PATTERN)
def test_an_example_is_matched(pattern):
    assert re.fullmatch(pattern, example(pattern))


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (".*foo", "foo"), ("(?i)^abc$|ab", "ab"), (r"\p{Lu}\P{L}[[:digit:]]", "A00"), (r"(?P<n>a+?)\u{1F600}", "a😀"),
        (r"(?x) a b # c", "ab"), ("a{2,}b{0}", "aa"), (r"[а-я]{3}", "ааа"), ("", ""), (r"\bno\b", "no"),
        ("(?x)a # b{3}\nc", "ac"), ("[😀]" * 200, "😀" * 200), ("[가-힣]", "가"), (r"\p{Han}", "㐀"),
        ("(){4000000000}{4000000000}", ""),
    ],
)  # fmt: skip
def test_examples_are_short(pattern, text):
    assert example(pattern) == text


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        "[",
        "[a-",
        "(?:",
        "(?",
        "\\",
        "\\x",
        "\\p{",
        "a{x}",
        "(?=a)b",
        "a)",
        "a{200000}",
        "[a&&b]",
        "(" * 5000,
        r"[^\x00-\x{9fff}]" * 30,
        r"\x{FFFFFFFFFF}",
        r"\x{D800}",
    ],
)
def test_what_is_not_understood_has_no_example(pattern):
    assert example(pattern) is None


@given(st.text("()[]{}|\\^$.*+?-:,aP<>=!&01x", max_size=12))
def test_any_text_is_read_to_its_end(text):
    example(text)
