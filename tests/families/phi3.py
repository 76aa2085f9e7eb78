"""Tiny Phi-3 models: Llama's tensors with q, k, v and gate, up fused; LongRoPE with either set of factors in use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from families import llama
from families.common import CONTEXT, Arrays, config
from families.llama import head_dim, norm_base

__all__ = ["norm_base"]
MODEL_TYPES = ("phi3",)


def _longrope(dims: int, **more: Any) -> dict[str, Any]:
    steps = np.arange(dims // 2) / dims
    long, short = (1.2 + 9 * steps).round(3).tolist(), (1 + 0.6 * steps).round(3).tolist()
    return {"type": "longrope", "long_factor": long, "short_factor": short, **more}


def _config(hidden: int, heads: int, **more: Any) -> dict[str, Any]:
    base = config("phi3", hidden, heads, rope_theta=1e4, attention_bias=False, resid_pdrop=0.0, pad_token_id=0)
    return {**base, **more}


# transformers takes the long factors for texts longer than the original context, we for models whose context is
# longer: with an original context of 1 both mean every text (a single token is not rotated at all).
CONFIGS: dict[str, dict[str, Any]] = {
    "phi3": _config(480, 6, rope_scaling=None, sliding_window=47, original_max_position_embeddings=CONTEXT),
    "phi3long": _config(
        96, 6, rope_scaling=_longrope(16, attention_factor=1.19), original_max_position_embeddings=1,
        sliding_window=None,
    ),
    "phi3short": _config(
        96, 3, rope_scaling=_longrope(24), original_max_position_embeddings=CONTEXT, partial_rotary_factor=0.75,
        sliding_window=262144, tie_word_embeddings=True,
    ),
}  # fmt: skip
NOT_GGUF = ()
# Not among the rest, for it has two sets of values: texts of up to 64 tokens are short for transformers.
BOTH_FACTORS = _config(96, 6, rope_scaling=_longrope(16), original_max_position_embeddings=64, sliding_window=None)


def shapes(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model under its Hugging Face name."""
    hidden, dim, found = c["hidden_size"], head_dim(c), {}
    qkv = (c["num_attention_heads"] + 2 * c["num_key_value_heads"]) * dim
    for name, shape in llama.shapes(c).items():
        if "q_proj" in name:
            found[name.replace("q_proj", "qkv_proj")] = (qkv, hidden)
        elif "gate_proj" in name:
            found[name.replace("gate_proj", "gate_up_proj")] = (2 * c["intermediate_size"], hidden)
        elif not any(part in name for part in ("k_proj", "v_proj", "up_proj")):
            found[name] = shape
    return found


def gguf_name(c: Mapping[str, Any], name: str) -> str:
    if "qkv_proj" in name:
        return llama.gguf_name(c, name.replace("qkv_proj", "q_proj")).replace("attn_q", "attn_qkv")
    return llama.gguf_name(c, name.replace("gate_up_proj", "up_proj"))


def gguf_metadata(c: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a GGUF file by name, as converters write them."""
    keys = llama.gguf_keys(c)
    context, original = c["max_position_embeddings"], c["original_max_position_embeddings"]
    keys |= {
        "rope.dimension_count": int(c.get("partial_rotary_factor", 1) * head_dim(c)),
        "rope.scaling.original_context_length": original,
        "attention.sliding_window": c["sliding_window"] or 0,
    }
    if c["rope_scaling"]:
        scale = context / original
        factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 < original else 1.0
        keys["rope.scaling.attn_factor"] = c["rope_scaling"].get("attention_factor", factor)
    del keys["attention.key_length"], keys["attention.value_length"]
    return {"general.architecture": "phi3", **{f"phi3.{k}": v for k, v in keys.items()}}


def gguf_tensors(c: Mapping[str, Any], tensors: Arrays) -> Arrays:
    """Tensors under their GGUF names, and the two sets of factors."""
    found = {gguf_name(c, name): x for name, x in tensors.items()}
    for kind in ("long", "short") if c["rope_scaling"] else ():
        found[f"rope_factors_{kind}.weight"] = np.array(c["rope_scaling"][f"{kind}_factor"], np.float32)
    return found
