"""Gemma 3's local layers keep their window only: what the KV of a request takes at 8,192 tokens of context."""

from __future__ import annotations

import pytest

from ridgeline.config import EngineConfig
from ridgeline.engine.load import load
from ridgeline.engine.params import SamplingParams
from ridgeline.engine.records import Submit
from ridgeline.errors import RidgelineError
from ridgeline.weights import hub

pytestmark = [pytest.mark.parity, pytest.mark.model]
CONTEXT = 8192


def test_kv_at_8k_context():
    try:
        hub.resolve("gemma3-270m")
    except RidgelineError as why:
        pytest.skip(f"the model cannot be had: {why}")
    loaded = load(EngineConfig("gemma3-270m", context=CONTEXT, kv_memory=1 << 28, max_requests=1))
    engine, program = loaded.engine, loaded.opened.program
    ids = loaded.opened.tokenizer.encode("The sea was calm. " * 2000, add_special=True)[: CONTEXT - 8]
    engine.submit(Submit(1, tuple(ids), SamplingParams(max_tokens=8, ignore_eos=True), 0, 8))
    used = []
    while not engine.idle:
        engine.step()
        used.append(engine.pool.used)
    page = program.states[0].page_bytes
    least = sum(s.layers * s.layer_token_bytes * min(CONTEXT, s.window or CONTEXT) for s in program.states)
    decode, peak = max(used[-8:-1]) * page / least, max(used) * page / least
    print(f"KV at {CONTEXT} tokens: {decode:.3f} x the least while generating, {peak:.3f} x at most between steps")
    assert decode <= 1.1
