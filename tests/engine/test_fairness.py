"""Fair share between tenants: what a greedy one cannot do to another, on a virtual clock."""

from __future__ import annotations

import random
import statistics

from collected import Collected, greedy, prompt_of
from fake import fake_engine
from test_policies import Arrival, Clock, play

from ridgeline.engine.client import LocalClient
from ridgeline.engine.policies import Fair, Job
from ridgeline.engine.records import Terms


def engine_of(clock: Clock, **settings):
    """Steps take what a small model's take: reading the weights, each token's arithmetic, each answer's head."""
    engine = fake_engine(clock=clock, policy="fair", step_tokens=256, context=2048, queue=5000, **settings)
    run_step = engine.executor.step.run

    def timed(batch):
        clock.now += 0.002 + 0.00035 * batch.size("T") + 0.0005 * batch.size("L")
        return run_step(batch)

    engine.executor.step.run = timed
    return engine


def p95_to_first_token(greed: float, load: float = 0.3, requests: int = 40) -> float:
    clock, rng = Clock(), random.Random(1)
    each, now, calm, crowd = 256 * 0.00035 + 32 * 0.0009, 0.0, [], []
    while len(calm) < requests:
        now += rng.expovariate(load / each)
        calm.append(Arrival(now, prompt_of(256, len(calm)), 32, clock, "calm"))
    end, now = now, 0.0
    while greed and (now := now + rng.expovariate(greed * load / each)) < end:
        crowd.append(Arrival(now, prompt_of(256, 1000 + len(crowd)), 32, clock, "greedy"))
    play(engine_of(clock, step_ms=50, max_requests=32, pages=2000), clock, calm + crowd)
    return statistics.quantiles([a.times[0] - a.at for a in calm], n=20)[-1]


def test_ten_times_the_load_does_not_slow_another_tenant():
    assert p95_to_first_token(10) <= 1.3 * p95_to_first_token(0)


def test_a_tenant_that_took_all_pages_gives_some_back():
    clock = Clock()
    engine = engine_of(clock, max_requests=16, pages=32)
    client, calm = LocalClient(engine), [Collected(), Collected()]
    client.submit(prompt_of(100, 0), greedy(5), calm[0], Terms(tenant="calm"))
    while not client.idle:
        client.pump()
    crowd = [Collected() for _ in range(8)]
    for i, sink in enumerate(crowd):
        client.submit(prompt_of(60, i), greedy(1500), sink, Terms(tenant="greedy"))
    while engine.pool.available > 2:
        client.pump()
    before = engine.step_number
    client.submit(prompt_of(400, 9), greedy(5), calm[1], Terms(tenant="calm"))
    while not calm[1].finish[0]:
        client.pump()
        engine.scheduler.audit()
    assert engine.step_number - before < 1000  # not when a whole answer has ended
    while not client.idle:
        client.pump()
    assert all(len(c.tokens[0]) == 1500 for c in crowd)


def test_answers_that_yield_go_on_within_their_patience():
    clock = Clock()
    engine = engine_of(clock, max_requests=8, pages=200)
    for i in range(3):  # so that the calm tenant is known, and owed
        play(engine, clock, [Arrival(clock.now, prompt_of(20, i), 2, clock, "calm")])
    answer = Arrival(clock.now, prompt_of(20, 5), 1500, clock, "greedy")
    prompts = [Arrival(clock.now + 3.5, prompt_of(1500, 10 + i), 2, clock, "calm") for i in range(3)]
    play(engine, clock, [answer, *prompts])
    gaps = [b - a for a, b in zip(answer.times, answer.times[1:], strict=False)]
    assert 0.4 < max(gaps) < 0.5 + 2 * 0.1


def test_what_a_tenant_is_owed():
    fair, jobs = Fair(burst=100), [Job((i, 0), name, 0, 5, 0.0) for i, name in enumerate("abc")]
    fair.added(jobs[0])
    fair.added(jobs[1])
    fair.charge(jobs[0], 10, 0.0)
    fair.ended(jobs[0])
    fair.charge(jobs[1], 50, 0.0)
    fair.added(jobs[0])
    assert fair.rank(jobs[0], 0.0)[0] == 10  # what the other had meanwhile
    fair.ended(jobs[0])
    fair.charge(jobs[1], 500, 0.0)
    fair.added(jobs[0])
    fair.added(jobs[2])
    assert fair.rank(jobs[0], 0.0)[0] == 450 and fair.rank(jobs[2], 0.0)[0] == 450
    assert not fair.preempts((450.0,), (550.0,)) and fair.preempts((450.0,), (551.0,))
    assert fair.yields(jobs[1], (450.0,), 0.4) and not fair.yields(jobs[1], (450.0,), 0.6)
    for i in range(3000):
        job = Job((i, 0), f"tenant {i}", 0, 5, 0.0)
        fair.added(job)
        fair.ended(job)
    assert len(fair._gone) < 2000 and len(fair._given) == 3
