"""Requests that have only so much time, on a virtual clock."""

from __future__ import annotations

import pytest
from collected import Collected, drain, greedy, prompt_of
from fake import fake_engine

from ridgeline.engine.client import LocalClient
from ridgeline.engine.records import Terms
from ridgeline.errors import Overloaded


def ended(terms: Terms, *, running: int = 2, ahead: int = 0, depth: int = 1) -> Collected:
    """A request of 30 tokens behind others of 50, in steps of a second."""
    now = [0.0]
    engine = fake_engine(clock=lambda: now[0], max_requests=running, depth=depth)
    client, seen = LocalClient(engine), Collected()
    others = [Collected() for _ in range(ahead)]
    for i, other in enumerate(others):
        client.submit(prompt_of(9, i), greedy(50), other)
    client.submit(prompt_of(20), greedy(30), seen, terms)
    while not client.idle:
        client.pump()
        now[0] += 1.0
        engine.scheduler.audit()
    assert all(o.finish[0] == ["length"] for o in others) and engine.pool.used == 0
    return seen


@pytest.mark.parametrize("depth", [1, 2])
def test_times_that_are_up(depth):
    assert ended(Terms(wait_s=5.0, total_s=60.0), depth=depth).finish[0] == ["length"]
    late = ended(Terms(wait_s=5.0), ahead=4, depth=depth)
    assert late.finish[0] == ["deadline"] and not late.tokens[0]
    cut = ended(Terms(wait_s=5.0, total_s=12.5), depth=depth)
    assert cut.finish[0] == ["deadline"] and 8 <= len(cut.tokens[0]) < 20
    assert ended(Terms(wait_s=80.0), ahead=2, depth=depth).finish[0] == ["length"]


def test_deadlines_of_ended_requests_are_forgotten():
    engine = fake_engine(clock=lambda: 0.0)
    client = LocalClient(engine)
    for i in range(300):
        client.submit(prompt_of(5, i), greedy(2), Collected(), Terms(wait_s=50.0, total_s=100.0))
        drain(client)
        assert len(engine._deadlines) < 80


def test_a_replay_has_the_time_that_is_left():
    now = [100.0]
    client = LocalClient(fake_engine(clock=lambda: now[0]))
    client.submit(prompt_of(5), greedy(9), Collected(), Terms(wait_s=10.0, total_s=50.0))
    client.ledger.due()
    now[0] += 4
    client.ledger.engine_died()
    (again,) = client.ledger.due()
    assert again.terms == Terms(wait_s=6.0, total_s=46.0)


def test_a_full_queue_says_when_to_come_back():
    now = [0.0]
    client = LocalClient(fake_engine(queue=2, max_requests=2, clock=lambda: now[0]))
    with pytest.raises(Overloaded) as first:
        for _ in range(5):
            client.submit([1, 2], greedy(40), Collected())
    assert first.value.retry_after == 1.0  # nothing is known yet
    while not client.idle:
        client.pump()
        now[0] += 1.0
    with pytest.raises(Overloaded) as later:
        for _ in range(5):
            client.submit([1, 2], greedy(40), Collected())
    assert 5 < later.value.retry_after < 60
