"""Requests for a fake engine, and what a sink saw of them."""

from __future__ import annotations

from collections import defaultdict

import pytest
from fake import VOCAB

from ridgeline.engine.client import LocalClient
from ridgeline.engine.params import SamplingParams
from ridgeline.engine.records import Token


class Collected:
    """What a sink saw of one request: tokens by choice, as ids and with their logprobs, finishes, text."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = defaultdict(list)
        self.scored: dict[int, list[Token]] = defaultdict(list)
        self.finish: dict[int, list[str]] = defaultdict(list)
        self.text: dict[int, str] = defaultdict(str)
        self.prompt = None
        self.cached: dict[int, int] = {}

    def __call__(self, delta) -> None:
        assert not self.finish[delta.choice], "a delta after the end"
        if delta.tokens:
            self.cached.setdefault(delta.choice, delta.cached)
        self.tokens[delta.choice] += [t.id for t in delta.tokens]
        self.scored[delta.choice] += delta.tokens
        self.text[delta.choice] += delta.text
        if delta.prompt is not None:
            assert self.prompt is None
            self.prompt = delta.prompt
        if delta.finish is not None:
            self.finish[delta.choice].append(delta.finish)


def prompt_of(length: int, salt: int = 0) -> list[int]:
    return [(7 * i + 13 * salt + 1) % VOCAB for i in range(length)]


def start(client, requests) -> list[Collected]:
    """Submit (prompt, params) pairs."""
    sinks = [Collected() for _ in requests]
    for (prompt, params), sink in zip(requests, sinks, strict=True):
        client.submit(prompt, params, sink)
    return sinks


def drain(client: LocalClient, pumps: int = 10_000) -> None:
    """Run dry; every page must come back."""
    for _ in range(pumps):
        if client.idle:
            break
        client.pump()
        client.engine.scheduler.audit()
    assert client.idle
    assert client.engine.pool.used == 0


def run(engine, requests):
    """Submit (prompt, params) pairs and run dry."""
    client = LocalClient(engine)
    seen = start(client, requests)
    drain(client)
    return seen


def greedy(max_tokens: int = 20, **more) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, seed=7, **more)


def seeds(count: int, quick: int) -> list:
    """Seeds of a random test: the first `quick` in make test, all in make test-all."""
    return [pytest.param(n, marks=pytest.mark.soak) if n >= quick else n for n in range(count)]
