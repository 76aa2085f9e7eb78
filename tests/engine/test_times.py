"""What an engine tells of time: how long a sequence ran before its first token, and what its steps took."""

from __future__ import annotations

import pytest
from collected import prompt_of
from fake import fake_engine

from ridgeline.engine.client import LocalClient
from ridgeline.engine.params import SamplingParams

STEP_S = 2.0


class Slow:
    """A client over a fake engine, each of whose steps takes two seconds by its clock."""

    def __init__(self, **settings) -> None:
        self.now = 0.0
        self.engine = fake_engine(clock=lambda: self.now, **settings)
        self.client, self._submit = LocalClient(self.engine), self.engine.executor.submit
        self.engine.executor.submit = self.submit
        self.deltas = []

    def submit(self, batch):
        self.now += STEP_S
        return self._submit(batch)

    def ask(self, prompt: int, **params) -> int:
        return self.client.submit(prompt_of(prompt), SamplingParams(**params), self.deltas.append)

    def drain(self) -> None:
        while not self.client.idle:
            self.client.pump()


def test_the_first_token_says_how_long_its_sequence_ran():
    slow = Slow(step_tokens=32, max_requests=1)
    first, second = slow.ask(70, max_tokens=2), slow.ask(10, max_tokens=2)
    slow.drain()
    ran = [(d.id, d.ran) for d in slow.deltas]
    assert ran == [(first, 3 * STEP_S), (first, 0.0), (second, STEP_S), (second, 0.0)]


@pytest.mark.parametrize(
    "kind",
    [{"embed": "mean", "max_tokens": 1, "temperature": 0}, {"beams": 2, "n": 2, "max_tokens": 3, "temperature": 0}],
)
def test_vectors_and_searches_say_it_with_their_end(kind):
    slow = Slow()
    slow.ask(10, **kind)
    slow.drain()
    assert all(d.finish and d.ran >= STEP_S for d in slow.deltas)


def test_steps_that_read_prompts_are_counted_apart():
    slow = Slow(step_tokens=32)
    slow.ask(70, max_tokens=4)
    slow.drain()
    counters = slow.client.ledger.last.counters
    assert (counters.reading.count, counters.reading.forward_s) == (3, 3 * STEP_S)
    assert (counters.answering.count, counters.answering.forward_s) == (3, 3 * STEP_S)
    assert counters.joins == 0


def test_steps_in_which_requests_join_others_are_counted():
    slow = Slow()
    for _ in range(2):
        slow.ask(10, max_tokens=8, n=2)  # together, so neither joins
    for joined in (0, 1, 2):
        for _ in range(2):
            slow.client.pump()
        assert slow.client.ledger.last.counters.joins == joined
        slow.ask(10, max_tokens=8)
        slow.ask(10, max_tokens=8)  # in the same step
    slow.drain()
    assert slow.client.ledger.last.counters.joins == 3
