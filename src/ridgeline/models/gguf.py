"""Strict reading of GGUF metadata into ModelConfig."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from ridgeline.errors import ModelFileError, Unsupported
from ridgeline.models.config import ModelConfig, Rope

_FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_READ = frozenset(
    "block_count context_length embedding_length feed_forward_length attention.head_count attention.head_count_kv "
    "attention.key_length attention.value_length attention.layer_norm_rms_epsilon rope.dimension_count rope.freq_base "
    "rope.scaling.type rope.scaling.factor rope.scaling.original_context_length vocab_size "
    "attention.sliding_window".split()
)


def from_gguf(
    metadata: Mapping[str, Any], tensors: Collection[str], vector: Callable[[str], list[float]], where: str
) -> ModelConfig:
    """ModelConfig of a GGUF file. `tensors` are its tensor names, `vector(name)` reads a small float tensor."""
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in _FAMILIES:
        raise Unsupported(f"{where}: architecture {arch!r} is not supported; supported: {', '.join(_FAMILIES)}")
    prefix = f"{arch}."
    keys = {k[len(prefix) :]: v for k, v in metadata.items() if k.startswith(prefix)}
    unknown = [k for k, v in keys.items() if k not in _READ and (np.ndim(v) or v)]
    if unknown:
        raise Unsupported(f"{where}: key {prefix}{unknown[0]} = {keys[unknown[0]]!r} is not understood")

    def number(key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        value = keys.get(key, default)
        if isinstance(value, bool) or not isinstance(value, kind):
            words = "text" if kind is str else "an integer" if kind is int else "a number"
            raise ModelFileError(f"{where}: {prefix}{key} must be {words}, is {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ModelFileError(f"{where}: {prefix}{key} must be finite, is {value}")
        return value

    hidden, heads = number("embedding_length", int), number("attention.head_count", int)
    layers = number("block_count", int)
    if not 0 < heads <= hidden:
        raise ModelFileError(f"{where}: {prefix}attention.head_count {heads} is out of range")
    if "attention.key_length" not in keys and hidden % heads:
        raise ModelFileError(f"{where}: {prefix}embedding_length {hidden} is not a multiple of head_count {heads}")
    head_dim = number("attention.key_length", int, hidden // heads)
    if number("attention.value_length", int, head_dim) != head_dim:
        raise Unsupported(f"{where}: {prefix}attention.value_length differs from key_length; not supported")
    window = number("attention.sliding_window", int, 0)
    tokens = metadata.get("tokenizer.ggml.tokens")
    return ModelConfig(
        family=_FAMILIES[arch],
        vocab=number("vocab_size", int, len(tokens) if isinstance(tokens, list) else None),
        hidden=hidden,
        layers=layers,
        n_heads=heads,
        n_kv_heads=number("attention.head_count_kv", int, heads),
        head_dim=head_dim,
        ffn=number("feed_forward_length", int),
        norm_eps=number("attention.layer_norm_rms_epsilon", (int, float)),
        rope=_rope(number, head_dim, vector("rope_freqs.weight") if "rope_freqs.weight" in tensors else []),
        context=number("context_length", int),
        tied="output.weight" not in tensors,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        o_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
        windows=(window,) * layers if window > 0 and layers <= 1000 else (),
    )


def _rope(number: Callable[..., Any], head_dim: int, factors: list[float]) -> Rope:
    theta = float(number("rope.freq_base", (int, float), 10000.0))
    dims = number("rope.dimension_count", int, head_dim)
    kind = number("rope.scaling.type", str, "")
    if factors:
        if kind not in ("", "none"):
            raise Unsupported(f"rope_freqs.weight together with rope.scaling.type {kind!r} is not supported")
        if len(factors) != dims // 2 or not all(0 < f < math.inf for f in factors):
            raise ModelFileError(f"rope_freqs.weight must hold {dims // 2} positive factors")
        return Rope(theta, dims, factors=tuple(factors))
    if kind == "" and number("rope.scaling.factor", (int, float), 0) not in (0, 1):
        raise Unsupported("rope.scaling.factor without rope.scaling.type is not supported; say linear or yarn")
    if kind in ("", "none"):
        return Rope(theta, dims)
    if kind not in ("linear", "yarn"):
        raise Unsupported(f"rope.scaling.type {kind!r} is not supported; supported: none, linear, yarn")
    factor = float(number("rope.scaling.factor", (int, float)))
    original = number("rope.scaling.original_context_length", int, number("context_length", int))
    return Rope(theta, dims, kind, factor, original)
