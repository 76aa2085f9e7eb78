"""Llama and its kin: Llama 1-3.x, SmolLM2, Mistral (window), Qwen2 (q/k/v bias), Qwen3 (QK-norm, free head_dim)."""

from __future__ import annotations

from ridgeline.errors import ModelFileError, Unsupported
from ridgeline.models import settings
from ridgeline.models.config import ModelConfig
from ridgeline.models.decoder import forward, logits
from ridgeline.models.header import Header, decoder, windows
from ridgeline.models.keys import Keys
from ridgeline.models.rope import rope_from_gguf, rope_from_hf

__all__ = ["forward", "from_gguf", "from_hf", "logits"]


def from_hf(k: Keys, name: str) -> ModelConfig:
    k.choice("hidden_act", ("silu",), "silu")
    fields = settings.decoder(k, context=2048, tied=False, head_dim=128 if name == "qwen3" else None)
    biased = k.flag("attention_bias", False) if name in ("llama", "qwen3") else False
    return ModelConfig(
        family=name,
        n_kv_heads=k.integer("num_key_value_heads", fields["n_heads"] if name == "llama" else None),
        ffn=k.integer("intermediate_size"),
        norm_eps=k.number("rms_norm_eps", 1e-6),
        rope=rope_from_hf(k, fields["head_dim"]),
        qkv_bias=biased or name == "qwen2",
        o_bias=biased,
        mlp_bias=k.flag("mlp_bias", False) if name == "llama" else False,
        qk_norm=name == "qwen3",
        windows=_windows(k, name, fields["layers"]),
        **fields,
    )


def from_gguf(h: Header, name: str) -> ModelConfig:
    fields = decoder(h)
    return ModelConfig(
        family=name,
        rope=rope_from_gguf(h, fields["head_dim"]),
        qk_norm="blk.0.attn_q_norm.weight" in h.tensors,
        windows=windows(h, fields["layers"]),
        **fields,
    )


def _windows(k: Keys, name: str, layers: int) -> tuple[int, ...]:
    """Llama: none. Mistral: one window for all layers. Qwen: only if use_sliding_window, in the layers that layer_types
    names or from layer max_window_layers on. Missing keys mean what they mean in transformers."""
    if name == "llama":
        if any(settings.layer_types(k, layers) or []):
            raise Unsupported(f"{k.label('layer_types')} with a sliding window is not supported for llama")
        return ()
    named = settings.layer_types(k, layers) if name != "mistral" else None
    first = k.integer("max_window_layers", 28) if name != "mistral" else 0
    in_use = name == "mistral" or k.flag("use_sliding_window", False)
    k.skip("sliding_window")
    if not in_use or k.data.get("sliding_window", 0) is None:
        if named is not None and any(named):
            raise ModelFileError(f"{k.where}: layer_types names sliding_attention, but no sliding_window is in use")
        return ()
    window = settings.window(k, 4096)
    local = named if named is not None else [i >= first for i in range(layers)]
    return tuple(window if here else 0 for here in local)
