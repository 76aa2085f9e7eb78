"""Invariant 1 through the whole engine on cpu: neighbours that come, go and are cancelled change no bit."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toy
from ridgeline.config import KV_FORMATS, EngineConfig
from ridgeline.cores import available_cores
from ridgeline.engine.client import LocalClient
from ridgeline.engine.load import load
from ridgeline.engine.params import SamplingParams
from ridgeline.engine.watermark import Watermark

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


def scored(folder: str, kv_format: str, pages: int, requests: list[tuple[list[int], SamplingParams]], **settings):
    """Tokens with logprobs of every choice of every request, served together in a pool of so many pages; counters."""
    config = EngineConfig(folder, threads=1, kv_format=kv_format, max_requests=5, context=256, **settings)
    page = load(replace(config, kv_memory=1 << 20)).engine.info.page_bytes
    loaded = load(replace(config, kv_memory=pages * page))
    loaded.step.kv.fill(0xFF)  # NaN in every format
    client, found = LocalClient(loaded.engine), []
    for prompt, params in requests:
        tokens: dict[int, list] = {}
        found.append(tokens)
        client.submit(prompt, params, lambda d, tokens=tokens: tokens.setdefault(d.choice, []).extend(d.tokens))
        for _ in range(3):
            client.pump()
            loaded.engine.scheduler.audit()
    while not client.idle:
        client.pump()
        loaded.engine.scheduler.audit()
    return found, loaded.engine.scheduler.counters


def shared_requests(rng: random.Random) -> list[tuple[list[int], SamplingParams]]:
    """A dozen requests that begin like one of two texts, some with three choices."""
    stems, requests = [[rng.randrange(200) for _ in range(150)] for _ in range(2)], []
    for i in range(12):
        prompt = [*rng.choice(stems)[: rng.randint(20, 150)], *(rng.randrange(200) for _ in range(rng.randint(1, 20)))]
        params = SamplingParams(
            n=rng.choice([1, 1, 3]),
            max_tokens=rng.randint(30, 80),
            temperature=0.8,
            seed=i,
            logprobs=2,
            ignore_eos=True,
            watermark=[None, Watermark(), Watermark("minhash"), Watermark("selfhash")][i % 4],
        )
        requests.append((prompt, params))
    return requests


@pytest.mark.parametrize("kv_format", KV_FORMATS)
def test_shared_prefixes_forks_and_preemption_change_no_bit(folder, kv_format):
    """Pages of others, copied ones, and those computed again hold what a request alone would have computed."""
    cached = preempted = 0
    for seed in range(3):
        requests = shared_requests(random.Random(seed))
        together, counters = scored(folder, kv_format, 8, requests, step_tokens=48)
        assert together == [scored(folder, kv_format, 40, [r], step_tokens=256)[0][0] for r in requests]
        cached, preempted = cached + counters.cached_tokens, preempted + counters.preemptions
    assert cached > 0 and preempted > 0


@pytest.mark.parametrize("kv_format", KV_FORMATS)
def test_beams_among_others_and_preempted_change_no_bit(folder, kv_format):
    requests = shared_requests(random.Random(5))[:6]
    beams = SamplingParams(beams=3, n=3, max_tokens=70, logprobs=2, ignore_eos=True)
    requests += [((3 * prompt)[:100], beams) for prompt, _ in requests]
    together, counters = scored(folder, kv_format, 8, requests[::-1], step_tokens=48)
    together.reverse()
    assert together == [scored(folder, kv_format, 40, [r], step_tokens=256)[0][0] for r in requests]
    assert counters.preemptions > 0
