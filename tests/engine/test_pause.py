"""Requests whose readers are behind: they wait, hold nobody up, and go on as if nothing had happened."""

from __future__ import annotations

import random

import pytest
from collected import Collected, drain, greedy, prompt_of, run, seeds
from fake import fake_engine

from ridgeline.engine.client import LocalClient
from ridgeline.engine.params import SamplingParams
from ridgeline.engine.records import UNDELIVERED, Terms


def pump(client, times: int = 1) -> None:
    for _ in range(times):
        client.pump()
        client.engine.scheduler.audit()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("n", [1, 3])
def test_a_paused_request_gets_nothing_until_it_is_resumed(depth, n):
    params = SamplingParams(n=n, seed=3, max_tokens=40)
    (alone,) = run(fake_engine(), [(prompt_of(100), params)])
    client, seen = LocalClient(fake_engine(depth=depth)), Collected()
    id = client.submit(prompt_of(100), params, seen)
    pump(client, 12)
    client.pause(id)
    pump(client, depth)  # what was in flight
    before, held = [len(seen.tokens[c]) for c in range(n)], client.engine.pool.used
    assert 0 < before[0] < 40
    pump(client, 20)
    assert [len(seen.tokens[c]) for c in range(n)] == before and client.engine.pool.used == held > 0
    assert client.engine.resting and not client.idle
    client.resume(id)
    drain(client)
    assert seen.tokens == alone.tokens and seen.text == alone.text
    assert any("its reader is behind" in line for line in client.engine.why(id))


def test_a_pause_before_the_first_step_holds():
    client, seen, other = LocalClient(fake_engine(max_requests=1)), Collected(), Collected()
    id = client.submit(prompt_of(30), greedy(5), seen)
    client.pause(id)
    client.submit(prompt_of(30, 1), greedy(5), other)  # behind it in the queue
    pump(client, 20)
    assert not seen.tokens[0] and other.finish[0] == ["length"]
    client.resume(id)
    drain(client)
    assert seen.finish[0] == ["length"]


@pytest.mark.parametrize("admission", ["overcommit", "strict"])
def test_paused_requests_take_no_place_and_give_their_pages_first(admission):
    """The oldest, which would be the anchor, holds nearly the whole pool: others take it, and it goes on later."""
    engine = fake_engine(pages=8, context=512, max_requests=2, admission=admission)
    client, requests = LocalClient(engine), [(prompt_of(380, i), greedy(60)) for i in range(4)]
    solo = [run(fake_engine(), [r])[0].tokens[0] for r in requests]
    sinks = [Collected() for _ in requests]
    ids = [client.submit(*r, s) for r, s in zip(requests, sinks, strict=True)]
    while not sinks[0].tokens[0]:
        pump(client)
    client.pause(ids[0])
    for _ in range(2000):
        if all(s.finish[0] for s in sinks[1:]):
            break
        pump(client)
    assert all(s.finish[0] == ["length"] for s in sinks[1:]) and not sinks[0].finish[0]
    assert any("gives way" in line for line in engine.why(ids[0])) and engine.pool.used == 0
    client.resume(ids[0])
    drain(client)
    assert [s.tokens[0] for s in sinks] == solo


def test_the_anchor_is_never_paused():
    engine = fake_engine(pages=10, context=512)
    client, sinks = LocalClient(engine), [Collected() for _ in range(3)]
    ids = [client.submit(prompt_of(60, i), greedy(400), s) for i, s in enumerate(sinks)]
    pump(client, 8)
    client.pause(ids[0])
    client.pause(ids[1])
    pump(client)
    assert engine.scheduler.anchor.id == ids[2]
    while not sinks[2].finish[0]:
        before = len(sinks[2].tokens[0])
        pump(client)
        assert len(sinks[2].tokens[0]) > before
    client.cancel(ids[0], UNDELIVERED)
    pump(client)
    assert sinks[0].finish[0] == ["undelivered"]
    client.resume(ids[1])
    drain(client)
    assert sinks[1].finish[0] == ["length"]


def test_time_runs_on_while_paused():
    now = [0.0]
    client, seen = LocalClient(fake_engine(clock=lambda: now[0])), Collected()
    id = client.submit(prompt_of(9), greedy(500), seen, Terms(total_s=30.0))
    pump(client, 5)
    client.pause(id)
    pump(client, 5)
    now[0] += 31
    drain(client)
    assert seen.finish[0] == ["deadline"] and len(seen.tokens[0]) < 10


def test_a_replay_is_still_paused():
    client, seen = LocalClient(fake_engine()), Collected()
    (alone,) = run(fake_engine(), [(prompt_of(70), greedy(30))])
    id = client.submit(prompt_of(70), greedy(30), seen)
    pump(client, 9)
    client.pause(id)
    client.engine = fake_engine()  # the old one is gone, with everything it knew
    client.ledger.engine_died()
    pump(client, 20)
    had = len(seen.tokens[0])
    assert 0 < had < 30 and client.engine.resting
    client.resume(id)
    drain(client)
    assert seen.tokens == alone.tokens


@pytest.mark.parametrize("seed", seeds(12, 6))
def test_random_pauses_change_no_answer(seed):
    """Pauses, resumes and cancels beside preemption, windows, choices and every policy."""
    rng = random.Random(seed)
    windows, policy = rng.choice([(0,), (50,), (0, 64)]), rng.choice(["fcfs", "priority", "mlfq", "fair"])
    engine = fake_engine(
        depth=rng.choice([1, 2]), windows=windows, pages=rng.choice([8, 24]) * len(windows), context=384,
        step_tokens=rng.choice([12, 40, 200]), max_requests=rng.choice([2, 4, 8]), policy=policy, queue=200,
        admission=rng.choice(["overcommit", "strict"]),
    )  # fmt: skip
    client, live = LocalClient(engine), []
    for i in range(30):
        prompt = [*prompt_of(150, i % 3)[: rng.randint(1, 150)], *prompt_of(rng.randint(0, 40), i)]
        params = SamplingParams(n=rng.choice([1, 1, 2]), max_tokens=rng.randint(1, 100), seed=rng.randint(0, 2))
        terms = Terms(tenant=rng.choice("ab"), priority=rng.randint(0, 2))
        sink = Collected()
        live.append((client.submit(prompt, params, sink, terms), sink, prompt, params))
        for _ in range(rng.randint(0, 4)):
            rng.choice([client.pause, client.pause, client.resume])(rng.choice(live)[0])
            pump(client, rng.choice([1, 1, 6]))
        if rng.random() < 0.1:
            client.cancel(rng.choice(live)[0])
    for id, *_ in live:
        client.resume(id)
    drain(client)
    for _, sink, prompt, params in live:
        assert all(len(sink.finish[c]) == 1 for c in range(params.n))
        if all(sink.finish[c] == ["length"] for c in range(params.n)):
            (alone,) = run(fake_engine(windows=windows, pages=400, context=384), [(prompt, params)])
            assert alone.tokens == sink.tokens
