"""StarCoder2: Llama's layout with LayerNorm, biases everywhere and an MLP without gate; a window in every layer."""

from __future__ import annotations

from typing import Any

from ridgeline.models import settings
from ridgeline.models.config import GELUS, ModelConfig
from ridgeline.models.decoder import forward, logits
from ridgeline.models.header import Header, decoder, windows
from ridgeline.models.keys import Keys
from ridgeline.models.rope import rope_from_gguf, rope_from_hf

__all__ = ["forward", "from_gguf", "from_hf", "logits"]

_WINDOW = 4096  # of every released model


def from_hf(k: Keys, name: str) -> ModelConfig:
    k.only(norm_type="layer_norm", mlp_type="default", scale_attn_weights=True)
    k.skip(  # left over from other families; what counts is hidden_act and norm_epsilon
        "activation_function layer_norm_epsilon rms_norm_eps residual_dropout embedding_dropout "
        "attention_softmax_in_fp32 scale_attention_softmax_in_fp32"
    )
    fields, biased = settings.decoder(k, context=4096, tied=True), k.flag("use_bias", True)
    return ModelConfig(
        n_kv_heads=k.integer("num_key_value_heads", 2),
        ffn=k.integer("intermediate_size"),
        norm_eps=k.number("norm_epsilon", 1e-5),
        rope=rope_from_hf(k, fields["head_dim"]),
        qkv_bias=biased,
        o_bias=biased,
        mlp_bias=biased,
        windows=settings.one_window(k, fields["layers"]),
        **_shape(name, GELUS[k.choice("hidden_act", GELUS, "gelu_pytorch_tanh")]),
        **fields,
    )


def from_gguf(h: Header, name: str) -> ModelConfig:
    """A file does not name its activation, and seldom its window; then they are those of the released models."""
    fields = decoder(h, "attention.layer_norm_epsilon")
    return ModelConfig(
        rope=rope_from_gguf(h, fields["head_dim"]),
        windows=windows(h, fields["layers"], _WINDOW),
        **_shape(name, "gelu_tanh"),
        **fields,
    )


def _shape(name: str, activation: str) -> dict[str, Any]:
    return {"family": name, "norm": "layer", "gated": False, "activation": activation}
