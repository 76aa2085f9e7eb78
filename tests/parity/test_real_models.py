"""Real models with the same dequantised weights: our backends against transformers in float32 on plain prose.

Perplexity within 0.1 %, the likeliest next token equal at 99.9 % of the positions. The text is the project's own; the
weights that transformers gets are unpacked by the gguf package and named by the tests, not by our loader.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import make_parity
import tiny
from ridgeline.errors import RidgelineError
from ridgeline.text.tokenizer import from_gguf
from ridgeline.weights import hub
from ridgeline.weights.load import open_checkpoint

pytestmark = [pytest.mark.parity, pytest.mark.model]
TEXT = Path(__file__).parent.parent / "data" / "prose.txt"


@dataclass(frozen=True)
class Model:
    """An alias, what transformers must be told of it, and how many tokens each backend is given.

    numpy reads all weights once per token, so its count is small.
    """

    alias: str
    config: dict[str, Any]
    tokens: dict[str, int]


MODELS = {
    model.alias: model
    for model in (
        Model(
            "smollm2-135m",
            {
                "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
                "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "rms_norm_eps": 1e-5,
                "max_position_embeddings": 8192, "tie_word_embeddings": True, "rope_theta": 1e5, "hidden_act": "silu",
            },
            {"reference": 200, "torch": 400, "cpu": 4000},
        ),
        Model(
            "gemma3-270m",
            {
                "model_type": "gemma3_text", "vocab_size": 262144, "hidden_size": 640, "intermediate_size": 2048,
                "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
                "rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "tie_word_embeddings": True,
                "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window": 512, "query_pre_attn_scalar": 256,
                "hidden_activation": "gelu_pytorch_tanh",
            },
            {"reference": 60, "torch": 700, "cpu": 2000},  # 700: over its window of 512
        ),
    )
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]


@pytest.fixture(scope="module")
def checkpoint(model):
    try:
        return open_checkpoint(hub.resolve(model.alias).path)
    except RidgelineError as why:
        pytest.skip(f"{model.alias} cannot be had: {why}")


@pytest.fixture(scope="module")
def ids(model, checkpoint):
    count = max(model.tokens.values())
    ids = from_gguf(checkpoint.metadata).encode(TEXT.read_text(), add_special=True)
    assert len(ids) >= count
    return ids[:count]


@pytest.fixture(scope="module")
def expected(model, checkpoint, ids):
    """transformers' logprobs of each next token, and its likeliest ones."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    theirs = make_parity.transformers_model(model.config, unpacked(model.config, checkpoint), attention="sdpa")
    with torch.no_grad():
        hidden = theirs.model(torch.tensor([ids])).last_hidden_state[0]
        rows = [make_rows(theirs.lm_head(part).numpy(), nxt) for part, nxt in pieces(hidden, ids)]
    return [np.concatenate(x) for x in zip(*rows, strict=True)]


def unpacked(config, checkpoint):
    """Float32 weights under their Hugging Face names, from the file by the gguf package."""
    gguf = pytest.importorskip("gguf")
    stored = {t.name: t for t in gguf.GGUFReader(checkpoint.where).tensors}
    found = {}
    for name, shape in tiny.shapes(config).items():
        t = stored[tiny.gguf_name(config, name)]
        x = gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)
        found[name] = hf_order(config, name, x)
        assert found[name].shape == shape, name
    return found


def hf_order(config, name, x):
    """Undo what converters do: interleaved halves of Llama's heads, norms of Gemma that hold the whole weight."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}.get(name.split(".")[-2])
    if config["model_type"] == "llama" and heads:
        return x.reshape(heads, len(x) // heads // 2, 2, -1).swapaxes(1, 2).reshape(x.shape)
    return x - np.float32(1) if config["model_type"] == "gemma3_text" and x.ndim == 1 else x


def pieces(hidden, ids, size=64):
    """Rows that predict something, with the token each one should predict, a few at a time: a row is up to 2 MB."""
    for start in range(0, len(ids) - 1, size):
        stop = min(start + size, len(ids) - 1)
        yield hidden[start:stop], ids[start + 1 : stop + 1]


def make_rows(logits, nxt):
    """(logprob of the next token, likeliest token) of each row of logits."""
    x = logits.astype(np.float64)
    top = x.max(axis=1, keepdims=True)
    logprobs = x - top - np.log(np.exp(x - top).sum(axis=1, keepdims=True))
    return logprobs[np.arange(len(nxt)), nxt], logits.argmax(axis=1)


def test_perplexity_and_agreement(model, checkpoint, ids, expected, backend):
    count, size = model.tokens[backend.name], 64
    step = tiny.compile_model(checkpoint, backend, tokens=size, context=4096)
    runner, found = tiny.Runner(step, step.layout), []
    for start in range(0, count, size):
        part = ids[start : min(start + size, count)]
        logits = np.array(runner.feed(part).logits)
        nxt = ids[start + 1 : start + 1 + len(part)][: count - 1 - start]
        found.append(make_rows(logits[: len(nxt)], nxt))
    logprobs, best = (np.concatenate(x) for x in zip(*found, strict=True))
    ours, theirs = (math.exp(-x[: count - 1].mean()) for x in (logprobs, expected[0]))
    agreement = float((best == expected[1][: count - 1]).mean())
    print(
        f"{model.alias} on {backend.name}: {count} tokens, perplexity {ours:.5f}, transformers {theirs:.5f}, "
        f"agreement {agreement:.5f}"
    )
    assert abs(ours / theirs - 1) <= 1e-3
    assert agreement >= 0.999
