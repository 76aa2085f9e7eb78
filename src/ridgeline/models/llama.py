"""Llama and its kin: Llama 1-3.x, SmolLM2, Mistral (window), Qwen2 (q/k/v bias), Qwen3 (QK-norm, free head_dim)."""

from __future__ import annotations

from ridgeline.errors import ModelFileError, Unsupported
from ridgeline.models.config import ModelConfig
from ridgeline.models.decoder import forward, logits
from ridgeline.models.header import Header, decoder, windows
from ridgeline.models.keys import Keys
from ridgeline.models.rope import rope_from_gguf, rope_from_hf

__all__ = ["forward", "from_gguf", "from_hf", "logits"]


def from_hf(k: Keys, name: str) -> ModelConfig:
    k.choice("hidden_act", ("silu",), "silu")
    hidden, heads, layers = sizes(k)
    head_dim = k.integer("head_dim", 128) if name == "qwen3" else head_width(k, hidden, heads)
    biased = k.flag("attention_bias", False) if name in ("llama", "qwen3") else False
    return ModelConfig(
        family=name,
        vocab=k.integer("vocab_size"),
        hidden=hidden,
        layers=layers,
        n_heads=heads,
        n_kv_heads=k.integer("num_key_value_heads", heads if name == "llama" else None),
        head_dim=head_dim,
        ffn=k.integer("intermediate_size"),
        norm_eps=k.number("rms_norm_eps", 1e-6),
        rope=rope_from_hf(k, head_dim),
        context=k.integer("max_position_embeddings", 2048),
        tied=k.flag("tie_word_embeddings", False),
        qkv_bias=biased or name == "qwen2",
        o_bias=biased,
        mlp_bias=k.flag("mlp_bias", False) if name == "llama" else False,
        qk_norm=name == "qwen3",
        windows=() if name == "llama" else _windows(k, name, layers),
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


def sizes(k: Keys) -> tuple[int, int, int]:
    """hidden, heads and layers under the names most families use; bounded, since lists of them are made."""
    hidden, heads = k.integer("hidden_size"), k.integer("num_attention_heads")
    layers = k.integer("num_hidden_layers")
    if not 0 < heads <= hidden or not 0 < layers <= 1000:
        raise ModelFileError(f"{k.where}: num_attention_heads {heads}, num_hidden_layers {layers} are out of range")
    return hidden, heads, layers


def head_width(k: Keys, hidden: int, heads: int) -> int:
    """Columns of a head: head_dim, or where it is missing an equal share of the hidden ones."""
    if "head_dim" not in k and hidden % heads:
        raise ModelFileError(f"{k.where}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    return k.integer("head_dim", hidden // heads)


def one_window(k: Keys, layers: int) -> tuple[int, ...]:
    """The sliding window of the config in every layer; none where it names none."""
    if "sliding_window" not in k:
        return ()
    window = k.integer("sliding_window")
    if window <= 0:
        raise k.wrong("sliding_window", f"must be positive, is {window}")
    return (window,) * layers


def _windows(k: Keys, name: str, layers: int) -> tuple[int, ...]:
    """Mistral: one window for all layers. Qwen: only if use_sliding_window, in the layers that layer_types names
    or from layer max_window_layers on. Missing keys mean what they mean in transformers."""
    named = layer_types(k, layers) if name != "mistral" else None
    first = k.integer("max_window_layers", 28) if name != "mistral" else 0
    in_use = name == "mistral" or k.flag("use_sliding_window", False)
    k.skip("sliding_window")
    if not in_use or k.data.get("sliding_window", 0) is None:
        if named is not None and any(named):
            raise ModelFileError(f"{k.where}: layer_types names sliding_attention, but no sliding_window is in use")
        return ()
    window = k.integer("sliding_window", 4096)
    if window <= 0:
        raise k.wrong("sliding_window", f"must be positive, is {window}")
    local = named if named is not None else [i >= first for i in range(layers)]
    return tuple(window if here else 0 for here in local)


def layer_types(k: Keys, layers: int) -> list[bool] | None:
    """For each layer whether it has a sliding window, if the config lists it."""
    types, known = k.get("layer_types"), ("full_attention", "sliding_attention")
    if types is None:
        return None
    if not isinstance(types, list) or len(types) != layers or any(t not in known for t in types):
        raise Unsupported(f"{k.where}: layer_types must list {layers} of {', '.join(known)}")
    return [t == known[1] for t in types]
