"""Beam search: the answers are those of the plain algorithm, whatever else the engine does at the same time."""

from __future__ import annotations

import random

import numpy as np
import pytest
from collected import Collected, greedy, prompt_of, run, seeds, start
from fake import fake_engine, likely

from ridgeline.engine.client import LocalClient
from ridgeline.engine.params import MAX_BEAMS, SamplingParams, check_params
from ridgeline.engine.policies import POLICIES
from ridgeline.engine.records import PAGE, Terms
from ridgeline.errors import InvalidRequest

EOS = frozenset({12})


def beams(width: int = 4, max_tokens: int = 20, **more) -> SamplingParams:
    return SamplingParams(beams=width, n=more.pop("n", width), max_tokens=max_tokens, **more)


def plain(prompt, p: SamplingParams, windows=(0,), eos=EOS):
    """All answers of a beam search, as (tokens, score), best first: whole texts, everything computed anew each step."""
    ends = set(p.stop_token_ids) | (set() if p.ignore_eos else eos)
    live, done = [(0.0, [])], []
    for length in range(1, p.max_tokens + 1):
        found = []
        for total, answer in live:
            text = np.array([*prompt, *answer], np.int64)
            for token, logprob in likely([text[-w:] if w else text for w in windows]):
                if length > p.min_tokens or token not in ends:
                    found.append((total + logprob, [*answer, token]))
        found.sort(key=lambda c: -c[0])
        over = [length == p.max_tokens or c[1][-1] in ends for c in found]
        done += [
            (c[1], c[0] / length**p.length_penalty) for c, o in list(zip(found, over, strict=True))[: p.beams] if o
        ]
        done = sorted(done, key=lambda d: -d[1])[: p.beams]
        live = [c for c, o in zip(found, over, strict=True) if not o][: p.beams]
        if not live:
            break
        hoped = p.max_tokens if p.early_stopping == "never" and p.length_penalty > 0 else length
        if len(done) == p.beams and (p.early_stopping is True or live[0][0] / hoped**p.length_penalty <= done[-1][1]):
            break
    return done[: p.n]


def check(seen: Collected, prompt, p, windows=(0,)):
    expected = plain(prompt, p, windows)
    assert [seen.tokens[c] for c in range(p.n)] == [tokens for tokens, _ in expected]
    for c, (tokens, _) in enumerate(expected):
        ended = tokens[-1] in EOS and not p.ignore_eos and len(tokens) > p.min_tokens
        assert seen.finish[c] == ["eos_token" if ended else "length"]
        assert seen.text[c] == "".join(f"{t} " for t in (tokens[:-1] if ended else tokens))


@pytest.mark.parametrize("width", [2, 5, MAX_BEAMS])
@pytest.mark.parametrize("early", [False, True, "never"])
@pytest.mark.parametrize("penalty", [-0.5, 0.0, 1.0, 2.0])
def test_answers_are_those_of_the_plain_search(width, early, penalty):
    prompt = prompt_of(61)
    p = beams(width, 30, early_stopping=early, length_penalty=penalty)
    (seen,) = run(fake_engine(eos=EOS, max_requests=10), [(prompt, p)])
    check(seen, prompt, p)


@pytest.mark.parametrize("more", [{"ignore_eos": True}, {"min_tokens": 6}, {"n": 1}, {"seed": 5}, {"temperature": 0}])
def test_what_goes_with_beams(more):
    p = beams(4, 12, **more)
    (seen,) = run(fake_engine(eos=EOS), [(prompt_of(30), p)])
    check(seen, prompt_of(30), p)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("windows", [(0,), (40,), (0, 70)])
@pytest.mark.parametrize("length", [1, PAGE - 1, PAGE, 2 * PAGE + 30])
def test_pages_and_windows(length, windows, depth):
    p = beams(5, 90, ignore_eos=True)
    (seen,) = run(fake_engine(windows=windows, pages=100, depth=depth), [(prompt_of(length), p)])
    check(seen, prompt_of(length), p, windows)


def test_beams_share_pages_and_copy_only_the_last():
    engine = fake_engine(pages=200)
    client, most = LocalClient(engine), 0
    client.submit(prompt_of(8 * PAGE + 10), beams(8, 40), Collected())
    while not client.idle:
        client.pump()
        engine.scheduler.audit()
        most = max(most, engine.pool.used)
    assert most == 8 + 8


def test_nothing_is_said_before_the_end():
    client, deltas = LocalClient(fake_engine()), []
    client.submit(prompt_of(20), beams(4, 10, n=2, ignore_eos=True), deltas.append)
    while not client.idle:
        assert not deltas
        client.pump()
    assert [(d.choice, len(d.tokens), d.finish) for d in deltas] == [(0, 10, "length"), (1, 10, "length")]


def test_logprobs_are_those_that_rank():
    client, deltas = LocalClient(fake_engine(eos=EOS)), []
    p = beams(4, 10, logprobs=3)
    client.submit(prompt_of(20), p, deltas.append)
    while not client.idle:
        client.pump()
    for d, (tokens, score) in zip(deltas, plain(prompt_of(20), p), strict=True):
        assert [t.id for t in d.tokens] == tokens and all(len(t.top) == 3 for t in d.tokens)
        assert sum(t.logprob for t in d.tokens) / len(tokens) == pytest.approx(score)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("admission", ["overcommit", "strict"])
@pytest.mark.parametrize("seed", seeds(2, 1))
def test_searches_among_others_in_a_small_pool(policy, admission, seed):
    """Searches and choices that take pages and places from each other, and cancels: answers are those alone."""
    rng = random.Random(f"{policy}{admission}{seed}")
    windows, now = rng.choice([(0,), (50,), (0, 64)]), [0.0]
    engine = fake_engine(
        depth=rng.choice([1, 2]), windows=windows, pages=rng.choice([12, 16, 24]) * len(windows), context=384, eos=EOS,
        step_tokens=rng.choice([12, 40, 200]), max_requests=rng.choice([5, 8]), admission=admission, policy=policy,
        clock=lambda: now[0], queue=200,
    )  # fmt: skip
    client, live = LocalClient(engine), []

    def pump():
        client.pump()
        now[0] += 0.05
        engine.scheduler.audit()

    for i in range(16):
        prompt = prompt_of(rng.randint(1, 150), rng.randint(0, 2))
        wide = rng.random() < 0.6
        p = beams(rng.randint(2, 5), rng.randint(1, 100)) if wide else greedy(rng.randint(1, 100), n=rng.choice([1, 3]))
        sink = Collected()
        try:
            live.append(
                (client.submit(prompt, p, sink, Terms(tenant=rng.choice("ab"), priority=i % 3)), sink, prompt, p)
            )
        except InvalidRequest:
            continue
        live.append((id, sink, prompt, p))
        for _ in range(rng.choice([0, 0, 10, 30])):
            pump()
        if rng.random() < 0.15:
            client.cancel(rng.choice(live)[0])
    for _ in range(8000):
        if client.idle:
            break
        pump()
    assert client.idle and engine.pool.used == 0
    for _, sink, prompt, p in live:
        assert all(len(sink.finish[c]) == 1 for c in range(p.n))
        if "cancelled" in (sink.finish[c][0] for c in range(p.n)):
            continue
        if p.beams:
            check(sink, prompt, p, windows)
        else:
            assert run(fake_engine(windows=windows, pages=200, eos=EOS), [(prompt, p)])[0].tokens == sink.tokens


@pytest.mark.parametrize("depth", [1, 2])
def test_beams_that_give_way_are_computed_again(depth):
    requests = [(prompt_of(100, i), beams(3, 150, ignore_eos=True)) for i in range(3)]
    engine = fake_engine(pages=14, context=384, depth=depth)
    for (prompt, p), seen in zip(requests, run(engine, requests), strict=True):
        check(seen, prompt, p)
    assert engine.scheduler.counters.preemptions >= 2 and engine.scheduler.counters.recomputed_tokens > 0


@pytest.mark.parametrize("pumps", [1, 4, 9, 30])
def test_a_cancelled_search_ends_each_answer_once_and_holds_nothing(pumps):
    engine = fake_engine(depth=2)
    client, seen = LocalClient(engine), Collected()
    id = client.submit(prompt_of(100), beams(6, 200, n=2, ignore_eos=True), seen)
    for _ in range(pumps):
        client.pump()
    client.cancel(id)
    client.pump()
    engine.scheduler.audit()
    assert engine.pool.used == 0 and dict(seen.finish) == {0: ["cancelled"], 1: ["cancelled"]}
    while not client.idle:
        client.pump()
    assert not engine._searches


def test_a_search_begins_anew_in_the_next_engine():
    client, seen, p = LocalClient(fake_engine(eos=EOS)), Collected(), beams(4, 40, ignore_eos=True)
    client.submit(prompt_of(70), p, seen)
    for _ in range(20):
        client.pump()
    client.engine = fake_engine(eos=EOS)
    client.ledger.engine_died()
    while not client.idle:
        client.pump()
    check(seen, prompt_of(70), p)


def test_logits_that_are_not_numbers_fail_all_answers():
    engine = fake_engine()
    engine.executor.step.run = nothing_follows(engine.executor.step.run)
    (seen,) = run(engine, [(prompt_of(10), beams(3, 5))])
    assert [seen.finish[c] for c in range(3)] == [["failed"]] * 3 and not any(seen.tokens.values())


def nothing_follows(run):
    def broken(batch):
        result = run(batch)
        result.ids[:], result.top_ids[:], result.top_logprobs[:] = -1, -1, -np.inf
        return result

    return broken


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"beams": 1}, "beams"),
        ({"beams": MAX_BEAMS + 1}, "beams"),
        ({"n": 5}, "n"),
        ({"temperature": 0.5}, "temperature"),
        ({"top_k": 5}, "top_k"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"stop": ("x",)}, "stop"),
        ({"seeds": (1,)}, "seeds"),
        ({"prompt_logprobs": True}, "prompt_logprobs"),
        ({"length_penalty": 11.0}, "length_penalty"),
        ({"early_stopping": "soon"}, "early_stopping"),
        ({"stop_token_ids": tuple(range(11))}, "stop_token_ids"),
        ({"beams": 0, "early_stopping": True}, "early_stopping"),
        ({"beams": 0, "length_penalty": 2.0}, "length_penalty"),
    ],
)
def test_what_does_not_go_with_beams_is_named(given, named):
    with pytest.raises(InvalidRequest) as refused:
        check_params(SamplingParams(**{"beams": 4, **given}), 1000)
    assert refused.value.param == named


def test_a_search_must_fit():
    client = LocalClient(fake_engine(pages=9, context=384, max_requests=6))
    for p, named, words in (
        (beams(7, 5), "beams", "at most 6 run together"),
        (beams(6, 200), "max_tokens", "6 x"),
        (beams(6, 5, n=1), "prompt", "lower beams"),
    ):
        with pytest.raises(InvalidRequest, match=words) as refused:
            client.submit(prompt_of(100 if named != "prompt" else 300), p, Collected())
        assert refused.value.param == named


def test_beams_that_give_way_find_their_own_prefix():
    """A beam that took over another's tokens must not go on from pages of those it had before."""
    for seed in range(12):
        rng = random.Random(seed)
        options = {"depth": 1, "context": 512, "step_tokens": 200, "max_requests": 6, "pages": 100}
        params = SamplingParams(beams=4, n=2, temperature=0, max_tokens=40, early_stopping="never")
        request = (prompt_of(rng.randint(40, 62), seed), params)
        (alone,) = run(fake_engine(**options), [request])
        engine = fake_engine(**options)
        client = LocalClient(engine)
        (seen,) = start(client, [request])
        while not client.idle:
            client.pump()
            engine.scheduler.audit()
            for s in [s for s in engine.scheduler.running if rng.random() < 0.25 and not engine._flights]:
                engine.scheduler._preempt(s, s)
        assert seen.tokens == alone.tokens
