"""Admission by the lengths of answers that ended: what starts fits while it grows."""

from __future__ import annotations

import math
import random

import pytest
from collected import Collected, greedy, prompt_of, run
from fake import fake_engine

from ridgeline.engine.client import LocalClient
from ridgeline.engine.lengths import Lengths
from ridgeline.engine.params import SamplingParams


class Drawn:
    """Text that a stop string ends after so many tokens."""

    def __init__(self, tokens: int) -> None:
        self.left = tokens

    def push(self, token: int) -> tuple[str, bool]:
        self.left -= 1
        return "x", not self.left

    def flush(self) -> str:
        return ""


class Unknown(Lengths):
    """Learns nothing, so that whatever fits now starts."""

    def observe(self, tokens: int) -> None: ...


class Told(Lengths):
    """Is told how long each request's answer gets."""

    def __init__(self, lengths: dict[int, int]) -> None:
        super().__init__()
        self.lengths = lengths
        for tokens in lengths.values():
            self.observe(tokens)

    def left(self, s) -> int:
        return self.lengths[s.id] - len(s.tokens) + s.prompt_len


def drawn(count: int, mean: float, spread: float, seed: int = 0) -> dict[int, int]:
    rng = random.Random(seed)
    return {i + 1: round(rng.lognormvariate(math.log(mean) - spread**2 / 2, spread)) + 1 for i in range(count)}


def served(lengths: dict[int, int], forecast: Lengths | None, pages: int) -> tuple[int, float]:
    """Steps that requests without max_tokens take, and the part of all tokens that was computed again."""
    engine = fake_engine(pages=pages, context=min(pages * 64, 8192), step_tokens=256, max_requests=32, queue=200)
    engine.new_text = lambda request: Drawn(lengths[request.id])
    if forecast is not None:
        engine.scheduler.lengths = forecast
    client, seen = LocalClient(engine), []
    for i in lengths:
        seen.append(Collected())
        client.submit(prompt_of(100, i), SamplingParams(temperature=0), seen[-1])
    while not client.idle:
        client.pump()
    assert [len(s.tokens[0]) for s in seen] == list(lengths.values())
    again = engine.scheduler.counters.recomputed_tokens
    return engine.executor.step.steps, again / (again + sum(lengths.values()) + 100 * len(lengths))


def test_answers_of_unknown_length_run_as_fast_as_if_they_were_known():
    lengths = drawn(64, 150, 1.0)
    (steps, again), (told, _) = served(lengths, None, 512), served(lengths, Told(lengths), 512)
    assert told / steps >= 0.9 and again <= 0.05


def test_what_was_learned_saves_computing_again():
    lengths, learned = drawn(64, 300, 0.5), Lengths()
    for tokens in drawn(100, 300, 0.5, seed=1).values():
        learned.observe(tokens)
    (steps, again), (told, _) = served(lengths, learned, 64), served(lengths, Told(lengths), 64)
    assert steps <= told * 1.05 and again < 0.6 * served(lengths, Unknown(), 64)[1]


def test_forecasts():
    engine = fake_engine()
    client = LocalClient(engine)
    client.submit(prompt_of(10), greedy(300), Collected())
    for _ in range(5):
        client.pump()
    (s,) = engine.scheduler.running
    lengths = Lengths()
    for tokens in (20, 3, 20, 20, 20, 20, 20, 20):
        assert lengths.peak([s]) == 0
        lengths.observe(tokens)
    made = len(s.tokens) - s.prompt_len
    assert lengths.left(s) == 20 - made  # that one of 3 was shorter
    assert lengths.peak([s]) == 2
    for _ in range(30):
        client.pump()
    assert lengths.left(s) == made + 30  # longer than all: as much again
    for _ in range(300):
        lengths.observe(1000)
    assert lengths.left(s) == 300 - made - 30  # its own limit


@pytest.mark.parametrize("windows", [(0,), (70, 0)])
@pytest.mark.parametrize("policy", ["fcfs", "fair", "mlfq"])
def test_a_forecast_changes_no_answer(windows, policy):
    requests = [(prompt_of(20 + 9 * i, i), greedy(20 + 23 * (i % 9))) for i in range(30)]
    solo = [run(fake_engine(windows=windows), [r])[0].tokens[0] for r in requests[::5]]
    engine = fake_engine(windows=windows, pages=16 * len(windows), policy=policy)
    assert [s.tokens[0] for s in run(engine, requests)][::5] == solo
