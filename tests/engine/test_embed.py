"""Embeddings: rows pooled however a prompt is cut, batched, cached or preempted; and refused mixtures."""

from __future__ import annotations

import zlib

import msgspec
import numpy as np
import pytest
from collected import drain, greedy, prompt_of
from fake import fake_engine

from ridgeline.engine.client import LocalClient
from ridgeline.engine.params import embedding
from ridgeline.engine.records import EMBEDDED, Delta, Terms
from ridgeline.errors import InvalidRequest


def expected(prompt: list[int], pooling: str) -> list[float]:
    """The fake's vector of a prompt."""
    ids = np.array(prompt, np.int64)
    rows = [(n, zlib.crc32(ids[:n].tobytes()) % 1000) for n in range(1, len(ids) + 1)]
    pooled = np.mean(rows, axis=0) if pooling == "mean" else rows[-1]
    return np.asarray(pooled, np.float32).tolist()


def embed(engine, prompts, pooling: str, beside=()) -> list[Delta]:
    """The only delta of each."""
    client, seen = LocalClient(engine), [[] for _ in prompts]
    for prompt, params in beside:
        client.submit(prompt, params, lambda delta: None)
    for prompt, deltas in zip(prompts, seen, strict=True):
        client.submit(prompt, embedding(pooling), deltas.append)
    drain(client)
    return [deltas[0] for deltas in seen if len(deltas) == 1]


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("options", [{}, {"depth": 2}, {"step_tokens": 9}, {"windows": (0, 70)}], ids=str)
def test_vectors_of_prompts_in_chunks_beside_answers(pooling, options):
    prompts = [prompt_of(n, salt=n) for n in (1, 2, 63, 64, 65, 200)]
    beside = [(prompt_of(30, salt=99), greedy(40)), (prompt_of(64, salt=64), greedy(5, prompt_logprobs=True))]
    deltas = embed(fake_engine(**options), prompts, pooling, beside)
    assert [np.frombuffer(d.vector, "<f4").tolist() for d in deltas] == [expected(p, pooling) for p in prompts]
    assert {(d.finish, d.tokens, d.text) for d in deltas} == {(EMBEDDED, (), "")}


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_the_prefix_cache_changes_nothing(pooling):
    engine = fake_engine()
    prompts = [prompt_of(150, salt=n % 2) for n in range(6)]
    deltas = embed(engine, prompts, pooling)
    assert [np.frombuffer(d.vector, "<f4").tolist() for d in deltas] == [expected(p, pooling) for p in prompts]
    again = embed(engine, prompts[:1], pooling)
    assert again[0].vector == deltas[0].vector
    assert again[0].cached == (128 if pooling == "last" else 0)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_an_embedding_that_gives_way_counts_no_row_twice(pooling):
    engine = fake_engine(pages=12, policy="priority")
    client, seen = LocalClient(engine), []
    client.submit(prompt_of(10), greedy(100), lambda delta: None)
    client.submit(prompt_of(300, salt=1), embedding(pooling), seen.append)
    for _ in range(5):
        client.pump()
    client.submit(prompt_of(500, salt=2), greedy(3), lambda delta: None, Terms(priority=1))
    drain(client)
    assert engine.scheduler.counters.preemptions > 0
    assert [np.frombuffer(d.vector, "<f4").tolist() for d in seen] == [expected(prompt_of(300, salt=1), pooling)]


@pytest.mark.parametrize(
    "more",
    [{"embed": "max"}, {"n": 2}, {"logprobs": 1}, {"max_tokens": 2}, {"prompt_logprobs": True}, {"stop": ("a",)}],
)
def test_an_embedding_is_nothing_else_besides(more):
    client = LocalClient(fake_engine())
    with pytest.raises(InvalidRequest, match="embed"):
        client.submit([1], msgspec.structs.replace(embedding("mean"), **more), lambda delta: None)
