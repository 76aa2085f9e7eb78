"""BLOOM: ALiBi instead of rope, a norm after the embedding, LayerNorm, biases in all linear layers, no gate.

The MLP is four times as wide as the model, its GELU the tanh form. One matrix holds q, k and v, head by head.
"""

from __future__ import annotations

from typing import Any

from ridgeline.models import settings
from ridgeline.models.config import ModelConfig
from ridgeline.models.decoder import forward, logits
from ridgeline.models.header import Header, decoder
from ridgeline.models.keys import Keys

__all__ = ["forward", "from_gguf", "from_hf", "logits"]

_UNUSED = (  # of training, and of how its parallel parts add up
    "slow_but_exact skip_bias_add skip_bias_add_qkv bias_dropout_fusion masked_softmax_fusion "
    "attention_softmax_in_fp32 offset_alibi"
)


def from_hf(k: Keys, name: str) -> ModelConfig:
    k.rename(n_embed="hidden_size", n_layer="num_hidden_layers", n_head="num_attention_heads")
    k.rename(seq_length="max_position_embeddings")  # of training: nothing else bounds the context
    k.skip(_UNUSED)
    fields = settings.decoder(k, context=2048, tied=True)
    hidden = fields["hidden"]
    k.only(apply_residual_connection_post_layernorm=False, n_inner=4 * hidden)
    return ModelConfig(
        n_kv_heads=fields["n_heads"],
        ffn=4 * hidden,
        norm_eps=k.number("layer_norm_epsilon", 1e-5),
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        **_shape(name),
        **fields,
    )


def from_gguf(h: Header, name: str) -> ModelConfig:
    return ModelConfig(**_shape(name), **decoder(h, "attention.layer_norm_epsilon"))


def _shape(name: str) -> dict[str, Any]:
    return {
        "family": name,
        "rope": None,
        "alibi": 1.0,
        "embed_norm": True,
        "norm": "layer",
        "gated": False,
        "activation": "gelu_tanh",
    }
