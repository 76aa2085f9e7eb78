"""min_tokens, bad words and forced tokens over a fake step, whatever the chunks, steps in flight and replays."""

from __future__ import annotations

import pytest
from fake import VOCAB, fake_engine
from test_engine import Collected, greedy, prompt_of, run

from ridgeline.engine.bans import Bans
from ridgeline.engine.client import LocalClient
from ridgeline.engine.params import MAX_STOP_IDS, SamplingParams

PROMPT = prompt_of(50)
EVEN = frozenset(range(0, VOCAB, 2))
SHAPES = [{"step_tokens": 8}, {"depth": 2}, {"depth": 3, "windows": (0, 40)}, {}]


def answer(params: SamplingParams, **engine) -> Collected:
    return run(fake_engine(**engine), [(PROMPT, params)])[0]


def places(tokens: list[int], word: tuple[int, ...]) -> list[int]:
    """Where the last token of `word` is, each time it occurs."""
    return [i for i in range(len(word) - 1, len(tokens)) if tuple(tokens[i - len(word) + 1 : i + 1]) == word]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bad_words_change_the_last_token_of_each_and_no_other(shape):
    words: tuple[tuple[int, ...], ...] = ()
    before = answer(greedy(40), **shape).tokens[0]
    for length in (1, 2, 3, 7, 1, 2, 12):
        end = 13 + length
        words += (tuple(before[end - length : end]),)
        after = answer(greedy(40, bad_words=words), **shape).tokens[0]
        first = places(before, words[-1])[0]
        assert after[:first] == before[:first] and after[first] != before[first] and len(after) == 40
        assert not any(places(after, word) for word in words)
        before = after


def test_a_bad_word_is_none_of_the_prompt():
    plain = answer(greedy(5)).tokens[0]
    assert answer(greedy(5, bad_words=((PROMPT[-1], plain[0]), (*PROMPT[-3:], *plain[:2])))).tokens[0] == plain
    assert answer(greedy(5, bad_words=((plain[0], plain[1]),))).tokens[0][1] != plain[1]


@pytest.mark.parametrize("depth", [1, 2])
def test_words_end_early_end_late_and_overlap(depth):
    """One ends where another goes on; one whose first tokens repeat; one that is longer than the answer so far."""
    a, b, c, d, *_ = answer(greedy(6)).tokens[0]
    for words in [((a,), (a, b)), ((a, b), (b,)), ((b, c), (a, b, c)), ((a, b, c), (a, b, c, d)), ((d, d, d), (a, a))]:
        tokens = answer(greedy(30, bad_words=words), depth=depth).tokens[0]
        assert not any(places(tokens, word) for word in words)
    bans = Bans(SamplingParams(bad_words=((1, 1, 2), (1, 2), (1, 1, 1, 3), (4,))), frozenset())
    assert [bans.after([9, *[1] * n], 1, n) for n in range(5)] == [{4}, {4, 2}, {4, 2}, {4, 2, 3}, {4, 2, 3}]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ends", ["eos", "stop_token_ids", "both"])
def test_no_end_before_min_tokens(shape, ends):
    """The end token may be the one after min_tokens others, as in vLLM."""
    eos = EVEN if ends == "eos" else frozenset({2, 4}) if ends == "both" else frozenset()
    stop = () if ends == "eos" else tuple(EVEN)[:MAX_STOP_IDS]
    for least in (0, 1, 5, 59, 60):
        seen = answer(greedy(60, min_tokens=least, stop_token_ids=stop), eos=eos, **shape)
        tokens, end = seen.tokens[0], eos | set(stop)
        assert not end & set(tokens[:least]) and not end & set(tokens[:-1]) and len(tokens) >= least
        assert seen.finish[0] == ["length"] if tokens[-1] not in end else seen.finish[0] != ["length"]
        if least == 5:
            assert 5 < len(tokens) < 60, "the end came"


def test_min_tokens_bans_no_more_than_it_must():
    plain = answer(greedy(12)).tokens[0]
    assert answer(greedy(12, min_tokens=12)).tokens[0] == plain
    assert answer(greedy(12, min_tokens=9, ignore_eos=True), eos=EVEN).tokens[0] == plain
    banned = answer(greedy(12, min_tokens=9, ignore_eos=True, stop_token_ids=(plain[3],)), eos=EVEN).tokens[0]
    first = plain.index(plain[3])
    assert banned[:first] == plain[:first] and plain[3] not in banned[:9]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [1, 7, 20])
def test_an_answer_goes_on_from_its_forced_tokens(shape, count):
    """It is what a prompt with these tokens would be continued with."""
    forced = tuple(prompt_of(count, 5))
    for n in (1, 3):
        (seen,) = run(fake_engine(**shape), [(PROMPT, greedy(20, forced=forced, logprobs=0, n=n))])
        (known,) = run(
            fake_engine(windows=shape.get("windows", (0,))), [([*PROMPT, *forced], greedy(max(20 - count, 1), n=n))]
        )
        for c in range(n):
            assert tuple(seen.tokens[c][:count]) == forced and seen.finish[c] == ["length"]
            assert seen.tokens[c][count:] == known.tokens[c][: 20 - count]
            assert seen.text[c] == "".join(f"{t} " for t in seen.tokens[c])


def test_forced_tokens_are_not_held_to_bans():
    (seen,) = run(fake_engine(), [(PROMPT, greedy(9, forced=(30, 31, 32), bad_words=((30, 31), (32,))))])
    assert seen.tokens[0][:3] == [30, 31, 32] and 32 not in seen.tokens[0][3:]


def test_a_forced_end_token_ends_the_choice_where_it_may():
    """The fake samples nothing under 10."""
    ended = answer(greedy(9, forced=(31, 5, 33)), eos=frozenset({5}))
    assert ended.tokens[0] == [31, 5] and ended.finish[0] == ["eos_token"] and ended.text[0] == "31 "
    on = answer(greedy(9, forced=(31, 5, 33), min_tokens=2), eos=frozenset({5}))
    assert on.tokens[0][:3] == [31, 5, 33] and len(on.tokens[0]) == 9 and on.text[0].startswith("31 5 33 ")


@pytest.mark.parametrize("depth", [1, 2])
def test_replays_at_any_token_give_the_same(depth):
    plain = answer(greedy(25)).tokens[0]
    words = (tuple(plain[4:6]), tuple(plain[9:13]), (plain[2],))
    params = greedy(40, bad_words=words, min_tokens=12, forced=tuple(plain[:2]), repetition_penalty=1.2)
    whole = answer(params, eos=EVEN, depth=depth)
    assert 12 < len(whole.tokens[0]) < 40 and not any(places(whole.tokens[0], w) for w in words)
    for pumps in range(1, 2 * len(whole.tokens[0])):
        client, seen = LocalClient(fake_engine(eos=EVEN, depth=depth, step_tokens=9)), Collected()
        client.submit(PROMPT, params, seen)
        for _ in range(pumps):
            client.pump()
        client.engine = fake_engine(eos=EVEN, depth=depth, step_tokens=11)
        client.ledger.engine_died()
        while not client.idle:
            client.pump()
        assert seen.tokens == whole.tokens and seen.text == whole.text and seen.finish == whole.finish
