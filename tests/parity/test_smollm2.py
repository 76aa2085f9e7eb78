"""SmolLM2-135M with the same dequantised weights: our backends against transformers in float32 on plain prose.

Perplexity within 0.1 %, the likeliest next token equal at 99.9 % of the positions. The text is the project's own.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import make_parity
import tiny
from ridgeline.errors import RidgelineError
from ridgeline.models import build
from ridgeline.models.names import stored_name
from ridgeline.text.tokenizer import from_gguf
from ridgeline.weights import hub
from ridgeline.weights.load import open_checkpoint

pytestmark = [pytest.mark.parity, pytest.mark.model]
TEXT = Path(__file__).parent.parent / "data" / "prose.txt"
TOKENS = {"reference": 200, "cpu": 4000}  # numpy reads all weights once per token


@pytest.fixture(scope="module")
def checkpoint():
    try:
        return open_checkpoint(hub.resolve(hub.DEFAULT_MODEL).path)
    except RidgelineError as why:
        pytest.skip(f"the default model cannot be had: {why}")


@pytest.fixture(scope="module")
def ids(checkpoint):
    ids = from_gguf(checkpoint.metadata).encode(TEXT.read_text(), add_special=False)
    assert len(ids) >= TOKENS["cpu"]
    return ids[: TOKENS["cpu"]]


@pytest.fixture(scope="module")
def expected(checkpoint, ids):
    """transformers' logprobs of each next token, and its likeliest ones, from the weights as we unpack them."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    c = checkpoint.config
    config = {
        "model_type": "llama", "vocab_size": c.vocab, "hidden_size": c.hidden, "intermediate_size": c.ffn,
        "num_hidden_layers": c.layers, "num_attention_heads": c.n_heads, "num_key_value_heads": c.n_kv_heads,
        "rms_norm_eps": c.norm_eps, "max_position_embeddings": c.context, "tie_word_embeddings": c.tied,
        "rope_theta": c.rope.theta, "hidden_act": "silu",
    }  # fmt: skip
    model = make_parity.transformers_model(config, unpacked(config, checkpoint), attention="sdpa")
    with torch.no_grad():
        hidden = model.model(torch.tensor([ids])).last_hidden_state[0]
        logits = [make_rows(model.lm_head(part).numpy(), nxt) for part, nxt in pieces(hidden, ids)]
    return [np.concatenate(x) for x in zip(*logits, strict=True)]


def unpacked(config, checkpoint):
    """Float32 weights under their Hugging Face names, through the reader and the row order that we load with."""
    declared = [w for w in build(checkpoint.config).weights.values() if w.constant is None]
    found = {stored_name("llama", w.name, "hf"): checkpoint.read(w).float32() for w in declared}
    assert {name: x.shape for name, x in found.items()} == tiny.shapes(config)
    return found


def pieces(hidden, ids, size=256):
    """Rows that predict something, with the token each one should predict, a few at a time: a row is 200 kB."""
    for start in range(0, len(ids) - 1, size):
        stop = min(start + size, len(ids) - 1)
        yield hidden[start:stop], ids[start + 1 : stop + 1]


def make_rows(logits, nxt):
    """(logprob of the next token, likeliest token) of each row of logits."""
    x = logits.astype(np.float64)
    top = x.max(axis=1, keepdims=True)
    logprobs = x - top - np.log(np.exp(x - top).sum(axis=1, keepdims=True))
    return logprobs[np.arange(len(nxt)), nxt], logits.argmax(axis=1)


def test_perplexity_and_agreement(checkpoint, ids, expected, backend):
    count = TOKENS[backend.name]
    step = tiny.compile_model(checkpoint, backend, tokens=256, context=4096)
    runner, found = tiny.Runner(step, step.layout), []
    for start in range(0, count, 256):
        part = ids[start : min(start + 256, count)]
        logits = np.array(runner.feed(part).logits)
        nxt = ids[start + 1 : start + 1 + len(part)][: count - 1 - start]
        found.append(make_rows(logits[: len(nxt)], nxt))
    logprobs, best = (np.concatenate(x) for x in zip(*found, strict=True))
    ours, theirs = (math.exp(-x[: count - 1].mean()) for x in (logprobs, expected[0]))
    agreement = float((best == expected[1][: count - 1]).mean())
    print(
        f"{backend.name}: {count} tokens, perplexity {ours:.5f}, transformers {theirs:.5f}, agreement {agreement:.5f}"
    )
    assert abs(ours / theirs - 1) <= 1e-3
    assert agreement >= 0.999
