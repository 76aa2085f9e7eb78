"""Tiny Falcon models: 7B's multi-query decoder, the new decoder with two norms and with one, and RW with ALiBi.

RW has 4 heads: transformers rounds ALiBi to bfloat16, which is exact for slopes that are powers of two. Heads of 80
come with an untied head: the embedding's rows are of unit variance, so logits of a tied one grow with the width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from families.common import CONTEXT, VOCAB, Arrays
from families.neox import GGUF_NAMES, in_blocks, linear, norm, norm_base
from families.neox import gguf_name as named

__all__ = ["CONFIGS", "MODEL_TYPES", "NOT_GGUF", "norm_base"]
MODEL_TYPES = ("falcon",)


def _falcon(hidden: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "falcon", "vocab_size": VOCAB, "hidden_size": hidden, "num_hidden_layers": 2,
        "num_attention_heads": heads, "layer_norm_epsilon": 1e-5, "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True, "alibi": False, "bias": False, "multi_query": True, "parallel_attn": True,
        "new_decoder_architecture": False, "apply_residual_connection_post_layernorm": False,
        "bos_token_id": 11, "eos_token_id": 11, "torch_dtype": "float32", **more,
    }  # fmt: skip


_NEW = {"new_decoder_architecture": True, "num_kv_heads": 3}
CONFIGS: dict[str, dict[str, Any]] = {
    "falcon7": _falcon(240, 3, tie_word_embeddings=False),
    "falcon40": _falcon(96, 6, **_NEW),
    "falcon11": _falcon(
        480, 6, **_NEW, num_ln_in_parallel_attn=1, bias=True, activation="gelu", tie_word_embeddings=False,
    ),
    "falcon11t": _falcon(
        96, 6, **_NEW, num_ln_in_parallel_attn=1, ffn_hidden_size=136, ff_factor=4, rope_theta=500042.0,
    ),
    "falconrw": _falcon(96, 4, alibi=True, bias=True, multi_query=False, parallel_attn=False),
    "falconrw80": _falcon(
        320, 4, alibi=True, bias=True, multi_query=False, parallel_attn=False, tie_word_embeddings=False,
    ),
}  # fmt: skip
NOT_GGUF = ("falcon11t", "falconrw", "falconrw80")  # a rope base and a width that converters do not write, ALiBi


def _kv_heads(c: Mapping[str, Any]) -> int:
    if c["new_decoder_architecture"]:
        return int(c["num_kv_heads"])
    return 1 if c["multi_query"] else int(c["num_attention_heads"])


def _norms(c: Mapping[str, Any]) -> tuple[str, ...]:
    if not c["parallel_attn"]:
        return ("input_layernorm", "post_attention_layernorm")
    two = c["new_decoder_architecture"] and c.get("num_ln_in_parallel_attn", 2) == 2
    return ("ln_attn", "ln_mlp") if two else ("input_layernorm",)


def shapes(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model under its Hugging Face name."""
    hidden, heads, biased = c["hidden_size"], c["num_attention_heads"], c["bias"]
    ffn, dim = c.get("ffn_hidden_size", 4 * hidden), hidden // heads
    found: dict[str, tuple[int, ...]] = {"transformer.word_embeddings.weight": (c["vocab_size"], hidden)}
    for i in range(c["num_hidden_layers"]):
        p = f"transformer.h.{i}"
        found |= linear(f"{p}.self_attention.query_key_value", (heads + 2 * _kv_heads(c)) * dim, hidden, biased)
        found |= linear(f"{p}.self_attention.dense", hidden, hidden, biased)
        found |= linear(f"{p}.mlp.dense_h_to_4h", ffn, hidden, biased)
        found |= linear(f"{p}.mlp.dense_4h_to_h", hidden, ffn, biased)
        for name in _norms(c):
            found |= norm(f"{p}.{name}", hidden)
    found |= norm("transformer.ln_f", hidden)
    if not c["tie_word_embeddings"]:
        found["lm_head.weight"] = (c["vocab_size"], hidden)
    return found


_GGUF_NAMES = {
    **GGUF_NAMES, "word_embeddings": "token_embd", "ln_f": "output_norm", "lm_head": "output",
    "ln_attn": "attn_norm_2", "ln_mlp": "attn_norm",
}  # fmt: skip


def gguf_name(c: Mapping[str, Any], name: str) -> str:
    return named(c, name, _GGUF_NAMES)


def gguf_metadata(c: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a GGUF file by name, as converters write them: no rope base, and an MLP four times as wide."""
    assert c.get("rope_theta", 1e4) == 1e4 and "ffn_hidden_size" not in c
    keys = {
        "context_length": c["max_position_embeddings"], "tensor_data_layout": "jploski",
        "embedding_length": c["hidden_size"], "block_count": c["num_hidden_layers"],
        "feed_forward_length": 4 * c["hidden_size"],
        "attention.head_count": c["num_attention_heads"], "attention.head_count_kv": _kv_heads(c),
        "attention.layer_norm_epsilon": c["layer_norm_epsilon"], "vocab_size": c["vocab_size"],
    }  # fmt: skip
    return {"general.architecture": "falcon", **{f"falcon.{k}": v for k, v in keys.items()}}


def gguf_tensors(c: Mapping[str, Any], tensors: Arrays) -> Arrays:
    """Tensors under their GGUF names, with the rows of q, k and v in GGUF's order."""
    heads = c["num_attention_heads"]
    sizes = heads, _kv_heads(c), c["hidden_size"] // heads
    return {gguf_name(c, name): in_blocks(name, x, *sizes) for name, x in tensors.items()}
