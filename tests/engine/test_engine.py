"""The engine over a fake step: scheduling, paging, ends and accounts, without a model."""

from __future__ import annotations

import random

import pytest
from collected import Collected, drain, greedy, prompt_of, run, seeds
from fake import VOCAB, fake_engine
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.engine.client import LocalClient
from ridgeline.engine.params import SamplingParams
from ridgeline.engine.records import most_tokens, pages_needed
from ridgeline.errors import InvalidRequest, Overloaded

REQUESTS = [
    (prompt_of(n, n), greedy(m)) for n, m in ((1, 5), (17, 30), (64, 64), (65, 3), (200, 40), (130, 1), (63, 70))
]
SOLO = [run(fake_engine(), [r])[0].tokens[0] for r in REQUESTS]


@pytest.mark.parametrize("step_tokens", [8, 9, 31, 64, 500])
def test_chunking_and_neighbours_change_nothing(step_tokens):
    together = run(fake_engine(step_tokens=step_tokens), REQUESTS)
    assert [c.tokens[0] for c in together] == SOLO


@pytest.mark.parametrize("max_requests", [1, 2, 3, 8])
def test_order_of_service_changes_nothing(max_requests):
    together = run(fake_engine(max_requests=max_requests, pages=16), REQUESTS)
    assert [c.tokens[0] for c in together] == SOLO


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("step_tokens", [8, 64])
def test_steps_in_flight_change_nothing(depth, step_tokens):
    together = run(fake_engine(depth=depth, step_tokens=step_tokens), REQUESTS)
    assert [c.tokens[0] for c in together] == SOLO


@pytest.mark.parametrize("depth", [1, 2])
def test_late_rows_are_discarded(depth):
    """With a stop token, a deeper pipeline has already started the next step: it must never be published."""
    solo = [run(fake_engine(stop=13), [r])[0].tokens[0] for r in REQUESTS]
    together = run(fake_engine(stop=13, depth=depth), REQUESTS)
    assert [c.tokens[0] for c in together] == solo


@pytest.mark.parametrize("windows", [(40,), (0, 40), (64, 0, 100)])
@pytest.mark.parametrize("step_tokens", [8, 50])
def test_windows(windows, step_tokens):
    solo = [run(fake_engine(windows=windows, pages=200, step_tokens=500), [r])[0].tokens[0] for r in REQUESTS]
    together = run(fake_engine(windows=windows, pages=60, step_tokens=step_tokens), REQUESTS)
    assert [c.tokens[0] for c in together] == solo


def test_window_groups_hold_no_more_than_they_need():
    engine = fake_engine(windows=(64,), pages=8, context=1024, step_tokens=16)
    client = LocalClient(engine)
    client.submit(prompt_of(900), greedy(100), Collected())
    most = 0
    while not client.idle:
        client.pump()
        most = max(most, engine.pool.used)
    assert most <= 3  # 64 keys of window and a chunk of 16, at page edges


def test_every_running_answer_moves_while_a_long_prompt_is_read():
    engine = fake_engine(step_tokens=16, pages=64)
    client = LocalClient(engine)
    answers = [Collected() for _ in range(4)]
    for i, a in enumerate(answers):
        client.submit(prompt_of(3, i), greedy(60), a)
    for _ in range(5):
        client.pump()
    before = [len(a.tokens[0]) for a in answers]
    client.submit(prompt_of(800), greedy(2), Collected())
    for _ in range(10):
        client.pump()
    assert [len(a.tokens[0]) for a in answers] == [n + 10 for n in before]


def test_choices_of_one_request():
    (seen,) = run(fake_engine(), [(prompt_of(20), SamplingParams(n=5, seed=3, max_tokens=9))])
    assert [seen.finish[c] for c in range(5)] == [["length"]] * 5
    assert len({tuple(seen.tokens[c]) for c in range(5)}) == 5
    (one,) = run(fake_engine(), [(prompt_of(20), SamplingParams(n=1, seed=3, max_tokens=9))])
    assert one.tokens[0] == seen.tokens[0]


def test_prompt_logprobs_come_once_and_whole():
    prompt = prompt_of(150)
    (seen,) = run(fake_engine(step_tokens=64), [(prompt, greedy(3, prompt_logprobs=True, logprobs=0))])
    assert [t.id for t in seen.prompt] == prompt[1:]
    assert len(seen.tokens[0]) == 3
    (single,) = run(fake_engine(), [(prompt[:1], greedy(1, prompt_logprobs=True))])
    assert single.prompt == ()


def test_finish_reasons():
    (length,) = run(fake_engine(), [(prompt_of(5), greedy(4))])
    assert length.finish[0] == ["length"] and len(length.tokens[0]) == 4
    first = length.tokens[0][1]
    (eos,) = run(fake_engine(eos=frozenset({first})), [(prompt_of(5), greedy(4))])
    assert eos.finish[0] == ["eos_token"] and eos.tokens[0][-1] == first and str(first) not in eos.text[0].split()
    (ignored,) = run(fake_engine(eos=frozenset({first})), [(prompt_of(5), greedy(4, ignore_eos=True))])
    assert ignored.tokens[0] == length.tokens[0]
    (stop,) = run(fake_engine(), [(prompt_of(5), greedy(4, stop_token_ids=(first,)))])
    assert stop.finish[0] == ["stop_sequence"]


@pytest.mark.parametrize(
    ("prompt", "params", "words"),
    [
        ([], greedy(), "empty"),
        (prompt_of(1024), greedy(), "1024 tokens"),
        (prompt_of(1000), greedy(30), "1030"),
        ([VOCAB], greedy(), "vocabulary"),
        ([-1], greedy(), "vocabulary"),
        ([1], SamplingParams(temperature=-1), "temperature"),
        ([1], SamplingParams(temperature=float("nan")), "temperature"),
        ([1], SamplingParams(top_p=0), "top_p"),
        ([1], SamplingParams(top_p=1.5), "top_p"),
        ([1], SamplingParams(min_p=-0.1), "min_p"),
        ([1], SamplingParams(top_k=-1), "top_k"),
        ([1], SamplingParams(n=0), "n must"),
        ([1], SamplingParams(max_tokens=0), "max_tokens"),
        ([1], SamplingParams(repetition_penalty=0), "repetition_penalty"),
        ([1], SamplingParams(frequency_penalty=3), "frequency_penalty"),
        ([1], SamplingParams(presence_penalty=-3), "presence_penalty"),
        ([1], SamplingParams(logprobs=21), "logprobs"),
        ([1], SamplingParams(seed=-1), "seed"),
        ([1], SamplingParams(logit_bias={VOCAB: 1.0}), "logit_bias"),
        ([1], SamplingParams(logit_bias={1: float("nan")}), "logit_bias"),
        ([1], SamplingParams(stop=("",)), "stop"),
        ([1], SamplingParams(stop_token_ids=(VOCAB,)), "stop_token_ids"),
        ([1], SamplingParams(typical_p=0), "typical_p"),
        ([1], SamplingParams(typical_p=float("nan")), "typical_p"),
        ([1], SamplingParams(min_tokens=-1), "min_tokens"),
        ([1], SamplingParams(min_tokens=9, max_tokens=8), "min_tokens asks for 9 tokens; the answer has at most 8"),
        (prompt_of(1000), SamplingParams(min_tokens=25), "min_tokens asks for 25 tokens; the answer has at most 24"),
        ([1], SamplingParams(bad_words=((),)), "bad_words"),
        ([1], SamplingParams(bad_words=((1, VOCAB),)), "bad_words"),
        ([1], SamplingParams(bad_words=((1,),) * 513), "bad_words has 513"),
        ([1], SamplingParams(bad_words=((1,) * 8193,)), "bad_words has 1 sequences of 8193 tokens"),
        ([1], SamplingParams(forced=(-1,)), "forced"),
        ([1], SamplingParams(forced=(VOCAB,)), "forced"),
        ([1], SamplingParams(forced=(1, 2, 3), max_tokens=2), "forced asks for 3 tokens; the answer has at most 2"),
        (prompt_of(200), SamplingParams(n=8, max_tokens=800), "KV pages"),
    ],
)
def test_refusals_name_the_number(prompt, params, words):
    client = LocalClient(fake_engine())
    with pytest.raises(InvalidRequest, match=words):
        client.submit(prompt, params, Collected())
    assert client.idle


def test_a_full_queue_refuses_and_recovers():
    client = LocalClient(fake_engine())
    sinks = [Collected() for _ in range(72)]
    for s in sinks:
        client.submit([1, 2], greedy(2), s)
    with pytest.raises(Overloaded, match="72"):
        client.submit([1, 2], greedy(2), Collected())
    while not client.idle:
        client.pump()
    client.submit([1, 2], greedy(2), Collected())
    assert all(s.finish[0] == ["length"] for s in sinks)


def test_cancel_frees_pages_within_one_step():
    engine = fake_engine()
    client = LocalClient(engine)
    seen, other = Collected(), Collected()
    id = client.submit(prompt_of(300), greedy(50), seen)
    client.submit(prompt_of(20), greedy(5), other)
    for _ in range(3):
        client.pump()
    held = engine.pool.used
    client.cancel(id)
    client.pump()
    assert engine.pool.used < held and seen.finish[0] == ["cancelled"]
    client.cancel(id)  # an ended request: nothing happens
    client.cancel(12345)
    while not client.idle:
        client.pump()
    assert other.finish[0] == ["length"] and engine.pool.used == 0


@pytest.mark.parametrize("seed", seeds(20, 10))
@pytest.mark.parametrize("depth", [1, 2])
def test_random_submits_and_cancels_end_each_request_once(seed, depth):
    """20 x 2 runs of 50 requests: every choice ends exactly once, pages balance, survivors are as alone."""
    rng = random.Random(seed)
    windows = rng.choice([(0,), (50,), (0, 64)])
    engine = fake_engine(depth=depth, windows=windows, pages=48, step_tokens=rng.choice([12, 40]), context=512)
    client = LocalClient(engine)
    live: list[tuple[int, Collected, list[int], SamplingParams]] = []
    for _ in range(50):
        prompt = prompt_of(rng.randint(1, 200), rng.randint(0, 99))
        params = SamplingParams(n=rng.choice([1, 1, 2]), max_tokens=rng.randint(1, 60), seed=rng.randint(0, 9))
        sink = Collected()
        live.append((client.submit(prompt, params, sink), sink, prompt, params))
        for _ in range(rng.randint(0, 6)):
            client.pump()
            engine.scheduler.audit()
        if rng.random() < 0.4:
            client.cancel(rng.choice(live)[0])
    drain(client)
    for _, sink, prompt, params in live:
        assert all(len(sink.finish[c]) == 1 for c in range(params.n))
        if all(sink.finish[c] == ["length"] for c in range(params.n)) and rng.random() < 0.2:
            (alone,) = run(fake_engine(windows=windows, pages=200), [(prompt, params)])
            assert alone.tokens == sink.tokens


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=7),
    step_tokens=st.integers(8, 80),
    pages=st.integers(12, 40),
    depth=st.integers(1, 2),
)
def test_invariance_property(lengths, step_tokens, pages, depth):
    requests = [(prompt_of(n, n), greedy(1 + n % 23)) for n in lengths]
    together = run(fake_engine(step_tokens=step_tokens, pages=pages, depth=depth), requests)
    for request, seen in zip(requests, together, strict=True):
        (alone,) = run(fake_engine(pages=40, step_tokens=500), [request])
        assert alone.tokens == seen.tokens


def test_penalties_see_exact_history():
    """A penalised sequence waits for its token in flight; its history must equal what it emitted."""
    engine = fake_engine(depth=2)
    client = LocalClient(engine)
    seen = Collected()
    client.submit([5, 5, 9], SamplingParams(max_tokens=12, seed=1, frequency_penalty=0.5), seen)
    recorded = []
    original = engine.executor.step.run

    def spy(batch):
        recorded.append(dict(zip(batch["history_ids"].tolist(), batch["history_output"].tolist(), strict=True)))
        return original(batch)

    engine.executor.step.run = spy
    while not client.idle:
        client.pump()
    last = recorded[-1]
    assert sum(last.values()) == 11 and last[5] == seen.tokens[0][:-1].count(5)


def test_replay_continues_where_the_client_stands():
    """What a restarted engine is sent gives the rest of the same answer, choice by choice."""
    params = SamplingParams(n=2, max_tokens=20, seed=5)
    (whole,) = run(fake_engine(), [(prompt_of(70), params)])
    client = LocalClient(fake_engine())
    seen = Collected()
    client.submit(prompt_of(70), params, seen)
    for _ in range(9):
        client.pump()
    assert 0 < len(seen.tokens[0]) < 20
    client.engine = fake_engine()  # the old one is gone, with everything it knew
    client.ledger.engine_died()
    while not client.idle:
        client.pump()
    assert seen.tokens == whole.tokens and seen.text == whole.text


def test_windows_with_chunks_longer_than_the_window_and_steps_in_flight():
    """Each step in flight holds a chunk beside the window: admission promises them all."""
    engine = fake_engine(windows=(40,), step_tokens=256, depth=2, pages=12, context=1024)
    together = run(engine, [(prompt_of(900, i), greedy(20)) for i in range(3)])
    (alone,) = run(fake_engine(windows=(40,), pages=64), [(prompt_of(900, 1), greedy(20))])
    assert together[1].tokens == alone.tokens


def test_without_max_tokens_the_pool_is_the_limit():
    (seen,) = run(fake_engine(pages=2, context=1024), [([1], SamplingParams(temperature=0, seed=1))])
    assert seen.finish[0] == ["length"] and len(seen.tokens[0]) == 127
    client = LocalClient(fake_engine(pages=2, context=1024))
    with pytest.raises(InvalidRequest, match="at most 127") as refused:
        client.submit(prompt_of(300), SamplingParams(), Collected())
    assert refused.value.param == "prompt"
    with pytest.raises(InvalidRequest, match="at most 28"):
        client.submit(prompt_of(100), greedy(200), Collected())


def test_the_largest_that_fits_fits():
    for windows in [(0,), (40,), (0, 100)]:
        engine = fake_engine(windows=windows, pages=9, context=1024)
        room = most_tokens(engine.info, 1)
        assert room == 1024 or pages_needed(engine.info, room + 1) > 9
        (seen,) = run(engine, [(prompt_of(10), greedy(room - 10))])
        assert seen.finish[0] == ["length"]


def test_more_choices_than_the_queue_holds_are_refused():
    client = LocalClient(fake_engine())
    with pytest.raises(InvalidRequest, match="at most 72"):
        client.submit([1], SamplingParams(n=73, max_tokens=1), Collected())


@pytest.mark.parametrize("depth", [1, 2])
def test_a_dead_end_fails_its_own_choice_only(depth):
    engine = fake_engine(depth=depth)
    original = engine.executor.step.run

    def dead(batch):
        result = original(batch)
        for row, record in enumerate(batch["sampler"]):
            if record["seed"] == 99 and record["position"] == 8:
                result.ids[row] = -1
        return result

    engine.executor.step.run = dead
    bad, good = run(engine, [([1] * 5, SamplingParams(seed=99, max_tokens=30)), (prompt_of(17, 17), greedy(30))])
    assert bad.finish[0] == ["failed"] and len(bad.tokens[0]) == 3
    assert good.tokens[0] == SOLO[1]
