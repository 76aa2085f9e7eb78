"""Phi-3, Phi-3.5 and Phi-4: Llama with q, k and v in one matrix, gate and up in another, and LongRoPE for 128k.

LongRoPE has two sets of frequency factors, for texts within and beyond the original context. Which one is used is
chosen once, by the engine's context: a KV cache cannot be rotated again when a text grows past the original context,
as transformers does by starting over. So a 128k model reads short texts with its long factors, unless it is run with
a context of at most the original one.
"""

from __future__ import annotations

from ridgeline.models import settings
from ridgeline.models.config import ModelConfig
from ridgeline.models.decoder import forward, logits
from ridgeline.models.header import Header, decoder, windows
from ridgeline.models.keys import Keys
from ridgeline.models.rope import longrope_from_gguf, rope_from_hf

__all__ = ["forward", "from_gguf", "from_hf", "logits"]

_WINDOW_OF_4K = 2047


def from_hf(k: Keys, name: str) -> ModelConfig:
    k.choice("hidden_act", ("silu",), "silu")
    k.only(attention_bias=False, mlp_bias=False, lm_head_bias=False, full_attn_mod=1, interpolate_factor=1)
    k.skip("original_max_position_embeddings")  # of LongRoPE alone
    fields = settings.decoder(k, context=4096, tied=False)
    return ModelConfig(
        family=name,
        n_kv_heads=k.integer("num_key_value_heads", fields["n_heads"]),
        ffn=k.integer("intermediate_size"),
        norm_eps=k.number("rms_norm_eps", 1e-5),
        rope=rope_from_hf(k, fields["head_dim"], kinds=("default", "longrope", "su")),
        windows=settings.one_window(k, fields["layers"]),
        **fields,
    )


def from_gguf(h: Header, name: str) -> ModelConfig:
    fields = decoder(h)
    window = _WINDOW_OF_4K if fields["context"] == 4096 else 0  # where the file does not say, as the first ones
    return ModelConfig(
        family=name,
        rope=longrope_from_gguf(h, fields["head_dim"]),
        windows=windows(h, fields["layers"], window),
        **fields,
    )
