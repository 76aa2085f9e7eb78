"""Embeddings against transformers' last hidden states, on every tiny config: batched, chunked, mean and last."""

from __future__ import annotations

import numpy as np
import pytest

import make_parity
import tiny
from ridgeline.engine.client import LocalClient
from ridgeline.engine.engine import Engine
from ridgeline.engine.executor import LocalExecutor
from ridgeline.engine.params import embedding
from ridgeline.engine.records import PAGE, EngineInfo, GroupInfo
from ridgeline.weights.load import open_checkpoint

pytestmark = pytest.mark.parity
BOUND = 1e-4
LENGTHS = (1, 17, 64, 90, 130)


def engine_over(checkpoint, backend) -> Engine:
    """An engine that cuts prompts into steps of at most 50 tokens."""
    step = tiny.compile_model(checkpoint, backend, tokens=50)
    layout, c = step.layout, checkpoint.config
    groups = tuple(GroupInfo(s.name, s.window) for s in tiny.program_of(checkpoint, backend).states)
    info = EngineInfo(
        model="tiny", vocab=c.vocab, context=tiny.CONTEXT, pages=2 * -(-tiny.CONTEXT // PAGE) * len(groups),
        page_bytes=1, groups=groups, step_tokens=50, step_ms=0, max_requests=2, queue=16, depth=1,
        admission="overcommit", policy="fcfs", backend=backend.name, format="f32", activations="float32",
        kv_format="f32", threads=1, weight_bytes=0, program="tiny", load_seconds=0.0,
    )  # fmt: skip
    return Engine(LocalExecutor(step), layout, info, frozenset(), lambda request: None)


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_vectors_are_transformers_hidden_states(name, backend, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    c = tiny.CONFIGS[name]
    tensors = tiny.weights(c, seed=1)
    model = make_parity.transformers_model(c, tensors)
    client = LocalClient(engine_over(open_checkpoint(tiny.write_hf(tmp_path, c, tensors)), backend))
    prompts = [tiny.prompt(n, seed=n) for n in LENGTHS]
    found: dict[tuple[int, str], np.ndarray] = {}
    for n, prompt in zip(LENGTHS, prompts, strict=True):
        for pooling in ("mean", "last"):
            client.submit(prompt, embedding(pooling), lambda d, key=(n, pooling): found.setdefault(key, d.vector))
    while not client.idle:
        client.pump()
    for n, prompt in zip(LENGTHS, prompts, strict=True):
        with torch.no_grad():
            states = model.base_model(torch.tensor([list(prompt)])).last_hidden_state[0].float().numpy()
        for pooling, theirs in (("mean", states.mean(axis=0)), ("last", states[-1])):
            assert np.abs(np.frombuffer(found[n, pooling], "<f4") - theirs).max() <= BOUND, (n, pooling)
