"""What sequences share and take from each other: prefixes, prompts of one request, pages that run short."""

from __future__ import annotations

import random

import pytest
from collected import Collected, drain, greedy, prompt_of, run, seeds
from fake import fake_engine

from ridgeline.engine.client import LocalClient
from ridgeline.engine.params import SamplingParams
from ridgeline.engine.records import PAGE, Terms


def cached_of(engine, prompt, params):
    (seen,) = run(engine, [(prompt, params)])
    return seen.cached[0], seen.tokens[0]


@pytest.mark.parametrize("windows", [(0,), (40,), (0, 70), (64, 200, 0)])
def test_a_prefix_is_computed_once(windows):
    engine = fake_engine(windows=windows, pages=200)
    whole = prompt_of(300)
    first = cached_of(engine, whole, greedy(5))
    assert first[0] == 0
    steps = engine.executor.step.steps
    assert cached_of(engine, whole, greedy(5)) == (4 * PAGE, first[1])
    assert engine.executor.step.steps - steps < 10
    other = [*whole[:130], *prompt_of(100, 5)]
    alone = cached_of(fake_engine(windows=windows, pages=200), other, greedy(5))[1]
    assert cached_of(engine, other, greedy(5)) == (2 * PAGE, alone)


def test_the_last_token_is_always_computed():
    engine = fake_engine()
    prompt = prompt_of(2 * PAGE)
    assert cached_of(engine, prompt, greedy(3))[0] == 0
    assert cached_of(engine, prompt, greedy(3))[0] == PAGE
    assert cached_of(engine, prompt[:PAGE], greedy(3))[0] == 0


def test_answers_are_prefixes_too():
    engine = fake_engine()
    prompt = prompt_of(50)
    _, answer = cached_of(engine, prompt, greedy(100))
    assert cached_of(engine, [*prompt, *answer, 5], greedy(3))[0] == 2 * PAGE


def test_tenants_share_nothing():
    client, found = LocalClient(fake_engine()), []
    for tenant in ("a", "b", "a"):
        seen = Collected()
        client.submit(prompt_of(200), greedy(2), seen, Terms(tenant=tenant))
        drain(client)
        found.append(seen.cached[0])
    assert found == [0, 0, 3 * PAGE]


@pytest.mark.parametrize(("sharing", "found"), [("tenant", [0, 0, 0, 3 * PAGE]), ("all", [0, 3 * PAGE, 0, 3 * PAGE])])
def test_who_shares_is_configured_and_a_salt_keeps_apart(sharing, found):
    client, cached = LocalClient(fake_engine(prefix_sharing=sharing)), []
    for terms in (Terms(tenant="a"), Terms(tenant="b"), Terms(tenant="b", salt="s"), Terms(tenant="b")):
        seen = Collected()
        client.submit(prompt_of(200), greedy(2), seen, terms)
        drain(client)
        cached.append(seen.cached[0])
    assert cached == found


def test_tenants_who_left_nothing_are_forgotten():
    engine = fake_engine(policy="fair")
    client = LocalClient(engine)
    for i in range(50):
        client.submit(prompt_of(10), greedy(2), Collected(), Terms(tenant=f"t{i}"))
        drain(client)
    assert len(engine.cache._roots) <= 1 and not engine.scheduler.policy._given


def test_prompt_logprobs_read_no_cache():
    engine = fake_engine()
    prompt = prompt_of(200)
    cached_of(engine, prompt, greedy(2))
    (seen,) = run(engine, [(prompt, greedy(2, prompt_logprobs=True))])
    assert [t.id for t in seen.prompt] == prompt[1:] and seen.cached[0] == 0


def rows_asked(engine):
    """A list that grows by the prompt rows of each step."""
    step, asked = engine.executor.step, []
    run_step = step.run

    def counted(batch):
        asked.append(int((batch["sampler"]["target"] >= 0).sum()))
        return run_step(batch)

    step.run = counted
    return asked


@pytest.mark.parametrize("depth", [1, 2])
def test_prompt_logprobs_run_in_pieces_beside_answers(depth):
    engine = fake_engine(pages=100, step_tokens=200, depth=depth)
    client, asked = LocalClient(engine), rows_asked(engine)
    sinks = [Collected() for _ in range(5)]
    for i, sink in enumerate(sinks[:4]):
        client.submit(prompt_of(20, i), greedy(400), sink)
    while not all(s.tokens[0] for s in sinks[:4]):
        client.pump()
    client.submit(prompt_of(600), greedy(5, prompt_logprobs=True), sinks[4])
    asked.clear()
    while sinks[4].prompt is None:
        before = [len(s.tokens[0]) for s in sinks[:4]]
        client.pump()
        assert [len(s.tokens[0]) - n for s, n in zip(sinks, before, strict=False)] == [1] * 4
    assert sum(asked) == len(sinks[4].prompt) == 599
    assert max(asked) <= 16 - 4  # rows of a step, less those of answers
    assert not engine._prompts


def test_prompt_logprobs_that_are_known_are_not_asked_for_again():
    engine = fake_engine(pages=23, step_tokens=200, context=1024)
    asked, requests = rows_asked(engine), [(prompt_of(60, i), greedy(150)) for i in range(4)]
    *_, seen = run(engine, [*requests, (prompt_of(900, 9), greedy(5, prompt_logprobs=True))])
    assert engine.scheduler.counters.preemptions == 1
    assert seen.cached[0] == 0 and engine.scheduler.counters.cached_tokens > 6 * PAGE
    assert sum(asked) == len(seen.prompt) == 899
    (alone,) = run(fake_engine(pages=23), [(prompt_of(900, 9), greedy(5, prompt_logprobs=True))])
    assert (alone.prompt, alone.tokens) == (seen.prompt, seen.tokens)


def test_what_was_used_longest_ago_goes_first():
    engine = fake_engine(pages=12, context=512)
    prompts = [prompt_of(250, i) for i in range(4)]  # 3 full pages each; a run needs 4
    for p in (*prompts[:3], prompts[0], prompts[3]):
        cached_of(engine, p, greedy(2))
    assert [cached_of(engine, p, greedy(2))[0] for p in (prompts[0], prompts[3])] == [3 * PAGE] * 2


def test_choices_share_the_pages_of_their_prompt():
    prompt = prompt_of(8 * PAGE + 10)
    most, answers = {}, {}
    for n in (1, 8):
        engine = fake_engine(pages=200)
        client, seen = LocalClient(engine), Collected()
        client.submit(prompt, SamplingParams(n=n, seed=3, max_tokens=20), seen)
        most[n] = 0
        while not client.idle:
            client.pump()
            engine.scheduler.audit()
            most[n] = max(most[n], engine.pool.used)
        answers[n] = seen.tokens[0]
    assert answers[1] == answers[8] and most == {1: 9, 8: 8 + 8}


@pytest.mark.parametrize("length", [1024, 2000])
def test_eight_choices_cost_little_more_prompt_than_one(length):
    """Pages once the prompt is read and its last page copied: all of the prompt's, those that answers begin in too."""
    held = {}
    for n in (1, 8):
        engine = fake_engine(pages=200, context=2048, step_tokens=4096)
        client = LocalClient(engine)
        client.submit(prompt_of(length), SamplingParams(n=n, max_tokens=20), Collected())
        client.pump()
        held[n] = engine.pool.used
    assert held[8] <= 1.3 * held[1]


@pytest.mark.parametrize("length", [PAGE, PAGE + 1, 2 * PAGE - 1, 100])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("windows", [(0,), (40, 0)])
def test_choices_are_as_if_each_had_read_the_prompt(length, depth, windows):
    params = SamplingParams(n=6, seed=3, max_tokens=70)
    roomy, tight = (
        fake_engine(windows=windows, pages=200),
        fake_engine(windows=windows, pages=42, max_requests=4, depth=depth),
    )
    (a,), (b,) = run(roomy, [(prompt_of(length), params)]), run(tight, [(prompt_of(length), params)])
    assert a.tokens == b.tokens and len({tuple(t) for t in a.tokens.values()}) == 6


def test_a_seed_per_choice_is_that_seed_alone():
    prompt = prompt_of(100)
    (seen,) = run(fake_engine(), [(prompt, SamplingParams(n=3, seeds=(4, 9, 2), max_tokens=10))])
    for choice, seed in enumerate((4, 9, 2)):
        (alone,) = run(fake_engine(), [(prompt, SamplingParams(seed=seed, max_tokens=10))])
        assert alone.tokens[0] == seen.tokens[choice]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("windows", [(0,), (60,), (0, 60)])
def test_preempted_answers_go_on_as_if_nothing_had_happened(depth, windows):
    requests = [(prompt_of(20 + 30 * i, i), greedy(250 - 20 * i)) for i in range(8)]
    solo = [run(fake_engine(windows=windows, pages=64), [r])[0].tokens[0] for r in requests]
    engine = fake_engine(windows=windows, pages=9 * len(windows), depth=depth, context=384)
    together = run(engine, requests)
    assert [c.tokens[0] for c in together] == solo
    if windows == (0,):
        counters = engine.scheduler.counters
        assert counters.preemptions >= 3 and counters.recomputed_tokens > 0


def test_strict_admission_never_preempts():
    requests = [(prompt_of(20 + 30 * i, i), greedy(250 - 20 * i)) for i in range(8)]
    engine = fake_engine(pages=14, context=384, admission="strict")
    run(engine, requests)
    assert engine.scheduler.counters.preemptions == 0


def test_the_oldest_is_never_preempted():
    engine = fake_engine(pages=8, context=512)
    client = LocalClient(engine)
    sinks = [Collected() for _ in range(6)]
    for i, sink in enumerate(sinks):
        client.submit(prompt_of(60, i), greedy(400), sink)
    while not client.idle:
        before = len(sinks[0].tokens[0])
        client.pump()
        engine.scheduler.audit()
        assert sinks[0].finish[0] or len(sinks[0].tokens[0]) > before or before == 0
    assert all(s.finish[0] == ["length"] for s in sinks)


@pytest.mark.parametrize("seed", seeds(30, 10))
def test_random_traffic_in_a_small_pool(seed):
    """Shared prefixes, choices, cancels, windows and preemption at once: each answer is that of the request alone."""
    rng = random.Random(seed)
    windows = rng.choice([(0,), (50,), (0, 64)])
    depth = rng.choice([1, 2])
    engine = fake_engine(
        depth=depth, windows=windows, pages=rng.choice([24, 32]) * len(windows), step_tokens=rng.choice([12, 40, 200]),
        context=512, admission=rng.choice(["overcommit", "overcommit", "strict"]),
    )  # fmt: skip
    client, stems = LocalClient(engine), [prompt_of(rng.randint(60, 200), i) for i in range(4)]
    live = []
    for _ in range(40):
        prompt = [*rng.choice(stems)[: rng.randint(1, 200)], *prompt_of(rng.randint(0, 60), rng.randint(0, 3))]
        params = SamplingParams(
            n=rng.choice([1, 1, 2, 4]), max_tokens=rng.randint(1, 150), seed=rng.randint(0, 2),
            prompt_logprobs=rng.random() < 0.1,
        )  # fmt: skip
        sink = Collected()
        live.append((client.submit(prompt, params, sink), sink, prompt, params))
        for _ in range(rng.randint(0, 25)):
            client.pump()
            engine.scheduler.audit()
        if rng.random() < 0.2:
            client.cancel(rng.choice(live)[0])
    drain(client)
    for _, sink, prompt, params in live:
        assert all(len(sink.finish[c]) == 1 for c in range(params.n))
        if all(sink.finish[c] == ["length"] for c in range(params.n)):
            (alone,) = run(fake_engine(windows=windows, pages=200), [(prompt, params)])
            assert alone.tokens == sink.tokens and alone.prompt == sink.prompt


def test_why():
    engine = fake_engine(pages=7, context=384, max_requests=2)
    client = LocalClient(engine)
    ids = [client.submit(prompt_of(100, i), greedy(120, n=1 + (i == 2)), Collected()) for i in range(3)]
    while not client.idle:
        client.pump()
    first, second, third = (engine.why(id) for id in ids)
    assert first == [
        "choice 0 starts: 0 of its 100 tokens were in the prefix cache",
        "choice 0 ends (length) with 120 tokens",
    ]
    assert any("pauses: no page is left for its next token" in line for line in second)
    assert any("waits: for its" in line and "pages are missing" in line for line in second)
    assert sum("waits: 2 sequences run" in line for line in third) <= 2  # each choice says it once
    client = LocalClient(engine := fake_engine())
    id = client.submit(prompt_of(100), greedy(5, n=2), Collected())
    while not client.idle:
        client.pump()
    assert "choice 1 goes on from the prompt that choice 0 has read: shares its pages" in engine.why(id)


@pytest.mark.parametrize("windows", [(0,), (40, 0)])
def test_requests_that_come_together_read_their_prefix_once(windows):
    stem = prompt_of(300)
    requests = [([*stem, *prompt_of(20, i)], greedy(5)) for i in range(6)]
    solo = [run(fake_engine(windows=windows, pages=200), [r])[0].tokens[0] for r in requests]
    engine = fake_engine(windows=windows, pages=200)
    together = run(engine, requests)
    assert [c.tokens[0] for c in together] == solo
    assert [c.cached[0] for c in together] == [0] + [4 * PAGE] * 5


def test_no_step_is_empty_because_one_gave_way():
    """The newer request ranks first and gives its own pages up for the anchor, which must run in that step."""
    engine = fake_engine(pages=8, context=512, policy="priority")
    client = LocalClient(engine)
    for i in range(2):
        client.submit(prompt_of(60, i), greedy(400), Collected(), Terms(priority=i))
    while not client.idle:
        steps = engine.executor.step.steps
        client.pump()
        assert engine.executor.step.steps == steps + 1
