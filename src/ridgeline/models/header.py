"""Header: what a GGUF file says of a model before any tensor is read, and the settings all decoders have there."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from ridgeline.errors import ModelFileError, Unsupported
from ridgeline.models.keys import Keys


@dataclass(frozen=True)
class Header:
    """The keys of the file's architecture (without its prefix), its tensor names, and the size of its vocabulary.

    `vector(name)` reads a small float tensor.
    """

    keys: Keys
    tensors: Collection[str]
    vector: Callable[[str], list[float]]
    tokens: int | None


def decoder(h: Header, eps: str = "attention.layer_norm_rms_epsilon") -> dict[str, Any]:
    """Fields of ModelConfig that every architecture spells alike: sizes, head counts, which biases there are."""
    k = h.keys
    hidden, heads = k.integer("embedding_length"), k.integer("attention.head_count")
    if not 0 < heads <= hidden:
        raise ModelFileError(f"{k.label('attention.head_count')} {heads} is out of range")
    if "attention.key_length" not in k and hidden % heads:
        raise ModelFileError(f"{k.label('embedding_length')} {hidden} is not a multiple of head_count {heads}")
    head_dim = k.integer("attention.key_length", hidden // heads)
    if head_dim <= 0:
        raise k.wrong("attention.key_length", f"must be positive, is {head_dim}")
    if k.integer("attention.value_length", head_dim) != head_dim:
        raise Unsupported(f"{k.label('attention.value_length')} differs from key_length; not supported")
    return {
        "vocab": k.integer("vocab_size", h.tokens),
        "hidden": hidden,
        "layers": k.integer("block_count"),
        "n_heads": heads,
        "n_kv_heads": k.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "ffn": k.integer("feed_forward_length"),
        "norm_eps": k.number(eps),
        "context": k.integer("context_length"),
        "tied": "output.weight" not in h.tensors,
        "qkv_bias": "blk.0.attn_q.bias" in h.tensors or "blk.0.attn_qkv.bias" in h.tensors,
        "o_bias": "blk.0.attn_output.bias" in h.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in h.tensors,
    }


def windows(h: Header, layers: int, default: int = 0) -> tuple[int, ...]:
    """The sliding window of the file, `default` where it does not say, in every layer; none where it is 0."""
    window = h.keys.integer("attention.sliding_window", default)
    return (window,) * layers if window > 0 and 0 < layers <= 1000 else ()
