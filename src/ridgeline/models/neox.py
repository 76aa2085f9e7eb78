"""GPT-NeoX and Pythia: attention and MLP in parallel, each behind a norm of its own, and rope on part of each head.

LayerNorm, biases in all linear layers, an MLP without gate. One matrix holds q, k and v, head by head.
"""

from __future__ import annotations

from typing import Any

from ridgeline.models import settings
from ridgeline.models.config import GELUS, ModelConfig
from ridgeline.models.decoder import forward, logits
from ridgeline.models.header import Header, decoder
from ridgeline.models.keys import Keys
from ridgeline.models.rope import rope_from_gguf, rope_from_hf

__all__ = ["forward", "from_gguf", "from_hf", "logits"]


def from_hf(k: Keys, name: str) -> ModelConfig:
    fields, biased = settings.decoder(k, context=2048, tied=False), k.flag("attention_bias", True)
    theta, fraction = k.number("rotary_emb_base", 10000.0), k.number("rotary_pct", 0.25)
    activation = GELUS[k.choice("hidden_act", GELUS, "gelu")]
    return ModelConfig(
        n_kv_heads=fields["n_heads"],
        ffn=k.integer("intermediate_size"),
        norm_eps=k.number("layer_norm_eps", 1e-5),
        rope=rope_from_hf(k, fields["head_dim"], theta, fraction=fraction),
        qkv_bias=biased,
        o_bias=biased,
        mlp_bias=True,
        **_shape(name, k.flag("use_parallel_residual", True), activation),
        **fields,
    )


def from_gguf(h: Header, name: str) -> ModelConfig:
    """A file does not name its activation: it is the tanh form for the 20B model, the exact one for Pythia."""
    fields = decoder(h, "attention.layer_norm_epsilon")
    activation = "gelu_tanh" if (fields["hidden"], fields["layers"]) == (6144, 44) else "gelu"
    return ModelConfig(
        rope=rope_from_gguf(h, fields["head_dim"]),
        **_shape(name, h.keys.flag("use_parallel_residual", True), activation),
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
