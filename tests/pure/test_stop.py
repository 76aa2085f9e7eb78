"""Stop strings: what is shown must not depend on how the text is cut, and must end at the earliest stop string."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.errors import InvalidRequest
from ridgeline.text.stop import StopMatcher


def naive(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Of the stop strings that complete first, the longest; the text up to it."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


def run(pieces: list[str], stops: list[str], include: bool) -> tuple[str, str | None, list[str]]:
    matcher = StopMatcher(stops, include)
    shown = []
    for piece in pieces:
        text, matched = matcher.push(piece)
        shown.append(text)
        if matched is not None:
            return "".join(shown), matched, shown
    return "".join(shown) + matcher.flush(), None, shown


def test_what_is_complete_too_early_is_text():
    matcher = StopMatcher(["ab", "abc", "aa"])
    shown = matcher.push("xaba", may_stop=False)[0] + matcher.push("ab", may_stop=False)[0]
    assert shown + matcher.flush() == "xabaab"
    late = StopMatcher(["ab", "abc", "aa"])
    assert (late.push("xab", may_stop=False)[0] + late.push("c")[0], late.matched) == ("x", "abc")
    again = StopMatcher(["aa"])
    assert (again.push("aa", may_stop=False)[0] + again.push("a")[0], again.matched) == ("a", "aa")


def cut(text: str, places: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]


# Two letters make overlaps and near misses the rule rather than the exception.
letters = st.text(alphabet="ab", max_size=40)
stop_lists = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), max_size=4)


@given(letters, stop_lists, st.lists(st.integers(0, 40), max_size=8), st.booleans())
def test_equals_a_search_of_the_whole_text_however_it_is_cut(text, stops, places, include):
    shown, matched, _ = run(cut(text, places), stops, include)
    assert (shown, matched) == naive(text, stops, include)


@given(letters, stop_lists, st.lists(st.integers(0, 40), max_size=8))
def test_holds_back_no_more_than_a_possible_beginning(text, stops, places):
    matcher = StopMatcher(stops)
    shown = seen = ""
    for piece in cut(text, places):
        out, matched = matcher.push(piece)
        if matched is not None:
            return
        shown, seen = shown + out, seen + piece
        held = seen[len(shown) :]
        starts = [size for stop in stops for size in range(len(stop)) if seen.endswith(stop[:size])]
        assert len(held) == max(starts, default=0)


@pytest.mark.parametrize(
    ("pieces", "stops", "shown", "matched"),
    [
        (["hello world"], [], "hello world", None),
        (["hello\n", "\nworld"], ["\n\n"], "hello", "\n\n"),
        (["abc", "abd"], ["abcabd"], "", "abcabd"),
        (["aab"], ["ab"], "a", "ab"),
        (["abcd"], ["abcd", "bc"], "a", "bc"),  # the inner one completes first
        (["xabc"], ["bc", "abc"], "x", "abc"),  # both complete at once: the longer
        (["ab", "x"], ["abc"], "abx", None),
        (["one </", "s", "> two"], ["</s>"], "one ", "</s>"),
        (["日本", "語です"], ["語で"], "日本", "語で"),
        (["a😀", "b"], ["😀b"], "a", "😀b"),
    ],
)
def test_examples(pieces, stops, shown, matched):
    assert run(pieces, stops, include=False)[:2] == (shown, matched)


def test_include_shows_the_stop_string_and_nothing_after():
    assert run(["one STOP two"], ["STOP"], include=True)[:2] == ("one STOP", "STOP")


def test_text_is_shown_as_soon_as_it_is_safe():
    assert run(["a", "b", "c"], ["cd"], include=False)[2] == ["a", "b", ""]


def test_nothing_comes_after_a_match():
    matcher = StopMatcher(["x"])
    assert matcher.push("ax") == ("a", "x")
    assert matcher.matched == "x"
    assert matcher.push("more") == ("", None)
    assert matcher.flush() == ""


def test_flush_gives_what_was_held_once():
    matcher = StopMatcher(["stop"])
    assert matcher.push("a sto") == ("a ", None)
    assert matcher.flush() == "sto"
    assert matcher.flush() == ""


def test_an_empty_stop_string_is_refused():
    with pytest.raises(InvalidRequest) as caught:
        StopMatcher(["ok", ""])
    assert caught.value.param == "stop"


def test_time_is_linear_where_a_naive_matcher_is_quadratic():
    stop = "a" * 5000 + "b"
    start = time.perf_counter()
    matcher = StopMatcher([stop])
    for _ in range(200):
        matcher.push("a" * 500)
    assert time.perf_counter() - start < 2
    assert matcher.flush() == "a" * 5000
