"""Who goes first, on a virtual clock that a fake step moves on by what a real one would take."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest
from collected import Collected, greedy, prompt_of, run, seeds
from fake import fake_engine

from ridgeline.engine.client import LocalClient
from ridgeline.engine.pace import Pace
from ridgeline.engine.policies import FCFS, MLFQ, POLICIES, Fair, Job, Priority
from ridgeline.engine.records import Terms

BASE_S, TOKEN_S = 0.010, 0.001


class Clock:
    """Seconds that pass in steps only."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Arrival(Collected):
    """A request, when it comes, and when it had its tokens."""

    def __init__(self, at: float, prompt: list[int], tokens: int, clock: Clock, tenant: str = "") -> None:
        super().__init__()
        self.at, self.prompt_ids, self.length, self.clock, self.tenant = at, prompt, tokens, clock, tenant
        self.times: list[float] = []  # of its tokens

    def __call__(self, delta) -> None:
        super().__call__(delta)
        self.times.append(self.clock.now)


def timed_engine(clock: Clock, **settings):
    engine = fake_engine(clock=clock, **settings)
    run_step = engine.executor.step.run

    def timed(batch):
        clock.now += BASE_S + TOKEN_S * batch.size("T")
        return run_step(batch)

    engine.executor.step.run = timed
    return engine


def play(engine, clock: Clock, arrivals: list[Arrival]) -> None:
    """Submit each when its time has come, and run dry."""
    client, coming = LocalClient(engine), sorted(arrivals, key=lambda a: a.at)
    while coming or not client.idle:
        if client.idle and coming:
            clock.now = max(clock.now, coming[0].at)
        while coming and coming[0].at <= clock.now:
            a = coming.pop(0)
            client.submit(a.prompt_ids, greedy(a.length), a, Terms(tenant=a.tenant))
        client.pump()
        engine.scheduler.audit()


def bimodal(clock: Clock, load: float, requests: int = 150, seed: int = 1) -> list[Arrival]:
    """Nine short answers to one long one, coming at random at a part of what one at a time would take."""
    rng, now, arrivals = random.Random(seed), 0.0, []
    for i in range(requests):
        tokens = 400 if rng.random() < 0.1 else 8
        now += rng.expovariate(1.0) * (0.9 * 8 + 0.1 * 400) * (BASE_S + TOKEN_S) / load
        arrivals.append(Arrival(now, prompt_of(rng.randint(5, 20), i), tokens, clock))
    return arrivals


def completion(policy: str, load: float = 0.9, **settings) -> tuple[float, float]:
    clock = Clock()
    arrivals = bimodal(clock, load)
    play(timed_engine(clock, policy=policy, max_requests=1, pages=64, **settings), clock, arrivals)
    took = [a.times[-1] - a.at for a in arrivals]
    return statistics.mean(took), max(took)


def test_feedback_queues_finish_short_answers_sooner():
    (fcfs, _), (mlfq, longest) = completion("fcfs"), completion("mlfq")
    assert fcfs / mlfq >= 1.5, (fcfs, mlfq)
    assert longest < 150  # none starves


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("seed", seeds(6, 3))
def test_random_traffic_under_every_policy(policy, seed):
    """The first to have come may rank last, and takes pages from others while they are being scheduled."""
    rng, clock = random.Random(seed), Clock()
    depth = rng.choice([1, 2])
    engine = timed_engine(clock, policy=policy, pages=9, max_requests=4, depth=depth, context=512, step_tokens=40)
    arrivals = [
        Arrival(rng.uniform(0, 8), prompt_of(rng.choice([5, 30, 150]), i), rng.choice([5, 60, 300]), clock, str(i % 3))
        for i in range(25)
    ]
    play(engine, clock, arrivals)
    assert engine.pool.used == 0
    for a in rng.sample(arrivals, 4):
        (alone,) = run(fake_engine(), [(a.prompt_ids, greedy(a.length))])
        assert a.finish[0] == ["length"] and a.tokens == alone.tokens


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("depth", [1, 2])
def test_no_policy_changes_an_answer(policy, depth):
    requests = [(prompt_of(20 + 30 * i, i), greedy(150 - 20 * i)) for i in range(7)]
    solo = [run(fake_engine(), [r])[0].tokens[0] for r in requests]
    clock = Clock()
    engine = timed_engine(clock, policy=policy, pages=12, max_requests=3, depth=depth, context=512)
    assert [c.tokens[0] for c in run(engine, requests)] == solo


def test_a_greedy_tenant_does_not_slow_another():
    def first_tokens(policy: str, crowd: int) -> float:
        clock, rng = Clock(), random.Random(3)
        calm = [Arrival(i * 1.0, prompt_of(20, i), 20, clock, "calm") for i in range(40)]
        crowd_of = [Arrival(rng.uniform(0, 40), prompt_of(20, i), 20, clock, "greedy") for i in range(crowd)]
        engine = timed_engine(clock, policy=policy, max_requests=4, pages=64, queue=2000)
        play(engine, clock, calm + crowd_of)
        return statistics.quantiles([a.times[0] - a.at for a in calm], n=20)[-1]

    alone, fair, fcfs = first_tokens("fair", 0), first_tokens("fair", 400), first_tokens("fcfs", 400)
    assert fair < alone + 2 * (BASE_S + 20 * TOKEN_S) < fcfs / 3  # its own step, and the one before it


def test_levels_and_ranks():
    mlfq, job = MLFQ(quantum=10, levels=3, starve_s=5), Job((1, 0), "", 0, 15, 0.0)
    mlfq.added(job)
    assert job.level == 1
    mlfq.charge(job, 20, 1.0)
    assert job.level == 2 and mlfq.rank(job, 5.0) == (2, 1, 0) and mlfq.rank(job, 6.5) == (0, 1, 0)
    priority, low, high = Priority(age_s=10), Job((1, 0), "", 0, 5, 0.0), Job((2, 0), "", 1, 5, 0.0)
    assert priority.rank(high, 5.0) < priority.rank(low, 5.0)
    priority.charge(high, 1, 25.0)
    assert priority.rank(low, 25.0) < priority.rank(high, 25.0)
    fair = Fair({"paid": 2.0})
    jobs = [Job((i, 0), tenant, 0, 5, 0.0) for i, tenant in enumerate(("free", "paid"))]
    for j in jobs:
        fair.added(j)
    for j in jobs:
        fair.charge(j, 100, 0.0)
    assert fair.rank(jobs[1], 0.0) < fair.rank(jobs[0], 0.0)
    late = Job((9, 0), "late", 0, 5, 0.0)
    fair.added(late)
    assert fair.rank(late, 0.0)[0] == 50.0  # not owed what was given before it came
    assert FCFS().rank(late, 0.0) == (9, 0)


def test_pace_finds_the_line():
    pace = Pace(256, 0.256)
    for i in range(200):
        tokens = 8 if i % 2 else 100
        pace.observe(tokens, 0.010 + 0.0005 * tokens, tokens == 100)
    assert abs(pace.tokens(8, 0.060) - 92) <= 2  # 100 tokens in all
    assert pace.tokens(0, 0.0) == 8


def test_answers_go_on_at_their_pace_beside_a_long_prompt():
    gaps = {}
    for step_ms in (0, 40):
        clock = Clock()
        engine = timed_engine(clock, step_ms=step_ms, step_tokens=256, pages=200, context=4096)
        chats = [Arrival(0.0, prompt_of(10, i), 150, clock) for i in range(4)]
        play(engine, clock, [*chats, Arrival(1.0, prompt_of(2000), 5, clock)])
        gaps[step_ms] = max(b - a for a, b in itertools.pairwise(chats[0].times))
    assert gaps[0] > 0.25 and gaps[40] < 0.06
