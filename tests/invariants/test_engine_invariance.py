"""Invariant 1 through the whole engine on cpu: neighbours that come, go and are cancelled change no bit."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toy
from ridgeline.config import EngineConfig
from ridgeline.cores import available_cores
from ridgeline.engine.client import LocalClient
from ridgeline.engine.load import load
from ridgeline.engine.params import SamplingParams

pytest.importorskip("ridgeline.backends.cpu._native", reason="the native module is not built")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(toy.write(tmp_path_factory.mktemp("toy")))


def answer(folder: str, seed: int, *, crowd: int, step_tokens: int, threads: int):
    """(prompt scores, token scores with 20 alternatives, text) of one request among a crowd that is cancelled."""
    rng = random.Random(seed)
    config = EngineConfig(folder, threads=threads, step_tokens=step_tokens, max_requests=7, kv_memory=4 << 20)
    loaded = load(config)
    loaded.step.kv.fill(0xFF)  # NaN in every format
    client, deltas, others = LocalClient(loaded.engine), [], []
    params = SamplingParams(max_tokens=40, temperature=0.9, seed=11, logprobs=20, prompt_logprobs=True, ignore_eos=True)
    for _ in range(crowd):
        prompt = [rng.randrange(200) for _ in range(rng.randint(1, 90))]
        others.append(client.submit(prompt, SamplingParams(max_tokens=30, seed=1, ignore_eos=True), lambda delta: None))
    for _ in range(rng.randint(0, 3) if crowd else 0):
        client.pump()
    client.submit([(7 * i + 3) % 200 for i in range(75)], params, deltas.append)
    while not client.idle:
        client.pump()
        if others and rng.random() < 0.3:
            client.cancel(others.pop(rng.randrange(len(others))))
    prompt_scores = next(d.prompt for d in deltas if d.prompt is not None)
    return prompt_scores, [t for d in deltas for t in d.tokens], "".join(d.text for d in deltas)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1 << 20), crowd=st.integers(0, 6), step_tokens=st.integers(8, 120), threads=st.integers(1, 2)
)
def test_cancelled_neighbours_change_no_bit(folder, seed, crowd, step_tokens, threads):
    alone = answer(folder, 0, crowd=0, step_tokens=128, threads=1)
    threads = min(threads, available_cores())
    assert answer(folder, seed, crowd=crowd, step_tokens=step_tokens, threads=threads) == alone
