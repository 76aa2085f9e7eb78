"""GPT-NeoX and Pythia: attention and MLP in parallel, each behind a norm of its own, and rope on part of each head.

LayerNorm, biases in all linear layers, an MLP without gate. One matrix holds q, k and v, head by head.
"""

from __future__ import annotations

from typing import Any

from ridgeline.models.config import GELUS, ModelConfig
from ridgeline.models.decoder import forward, logits
from ridgeline.models.header import Header, decoder
from ridgeline.models.keys import Keys
from ridgeline.models.llama import head_width, sizes
from ridgeline.models.rope import rope_from_gguf, rope_from_hf

__all__ = ["forward", "from_gguf", "from_hf", "logits"]


def from_hf(k: Keys, name: str) -> ModelConfig:
    hidden, heads, layers = sizes(k)
    head_dim, biased = head_width(k, hidden, heads), k.flag("attention_bias", True)
    theta, fraction = k.number("rotary_emb_base", 10000.0), k.number("rotary_pct", 0.25)
    return ModelConfig(
        vocab=k.integer("vocab_size"),
        hidden=hidden,
        layers=layers,
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=head_dim,
        ffn=k.integer("intermediate_size"),
        norm_eps=k.number("layer_norm_eps", 1e-5),
        rope=rope_from_hf(k, head_dim, theta, fraction=fraction),
        context=k.integer("max_position_embeddings", 2048),
        tied=k.flag("tie_word_embeddings", False),
        qkv_bias=biased,
        o_bias=biased,
        mlp_bias=True,
        **_shape(name, k.flag("use_parallel_residual", True), GELUS[k.choice("hidden_act", GELUS, "gelu")]),
    )


def from_gguf(h: Header, name: str) -> ModelConfig:
    """A file does not name its activation; then it is that of the released models."""
    fields = decoder(h, "attention.layer_norm_epsilon")
    return ModelConfig(
        rope=rope_from_gguf(h, fields["head_dim"]),
        **_shape(name, h.keys.flag("use_parallel_residual", True), "gelu"),
        **fields,
    )


def _shape(name: str, parallel: bool, activation: str) -> dict[str, Any]:
    return {
        "family": name,
        "norm": "layer",
        "gated": False,
        "activation": activation,
        "residual": "parallel" if parallel else "sequential",
    }
