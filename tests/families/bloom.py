"""Tiny BLOOM models: ALiBi for 3 and 6 heads, a norm after the embedding; old and new spelling of the sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from families.common import CONTEXT, VOCAB, Arrays
from families.neox import GGUF_NAMES, in_blocks, linear, norm, norm_base
from families.neox import gguf_name as named

__all__ = ["CONFIGS", "MODEL_TYPES", "NOT_GGUF", "norm_base"]
MODEL_TYPES = ("bloom",)


def _bloom(**more: Any) -> dict[str, Any]:
    return {
        "model_type": "bloom", "vocab_size": VOCAB, "layer_norm_epsilon": 1e-5, "seq_length": CONTEXT,
        "tie_word_embeddings": True, "apply_residual_connection_post_layernorm": False, "pretraining_tp": 1,
        "slow_but_exact": False, "skip_bias_add": True, "skip_bias_add_qkv": False, "n_inner": None,
        "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32", **more,
    }  # fmt: skip


CONFIGS: dict[str, dict[str, Any]] = {
    "bloom": _bloom(hidden_size=96, n_layer=3, n_head=6),
    "bloom80": _bloom(
        n_embed=240, n_layer=2, num_attention_heads=3, tie_word_embeddings=False, offset_alibi=100,
        attention_softmax_in_fp32=True,
    ),
}  # fmt: skip
NOT_GGUF = ()


def _sizes(c: Mapping[str, Any]) -> tuple[int, int]:
    return c.get("n_embed") or c["hidden_size"], c.get("n_head") or c["num_attention_heads"]


def shapes(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model under its Hugging Face name."""
    hidden, _ = _sizes(c)
    found: dict[str, tuple[int, ...]] = {"transformer.word_embeddings.weight": (c["vocab_size"], hidden)}
    found |= norm("transformer.word_embeddings_layernorm", hidden)
    for i in range(c["n_layer"]):
        p = f"transformer.h.{i}"
        found |= linear(f"{p}.self_attention.query_key_value", 3 * hidden, hidden)
        found |= linear(f"{p}.self_attention.dense", hidden, hidden)
        found |= linear(f"{p}.mlp.dense_h_to_4h", 4 * hidden, hidden)
        found |= linear(f"{p}.mlp.dense_4h_to_h", hidden, 4 * hidden)
        found |= norm(f"{p}.input_layernorm", hidden) | norm(f"{p}.post_attention_layernorm", hidden)
    found |= norm("transformer.ln_f", hidden)
    if not c["tie_word_embeddings"]:
        found["lm_head.weight"] = (c["vocab_size"], hidden)
    return found


_GGUF_NAMES = {
    **GGUF_NAMES, "word_embeddings": "token_embd", "word_embeddings_layernorm": "token_embd_norm",
    "ln_f": "output_norm", "lm_head": "output",
}  # fmt: skip


def gguf_name(c: Mapping[str, Any], name: str) -> str:
    return named(c, name, _GGUF_NAMES)


def gguf_metadata(c: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a GGUF file by name, as converters write them."""
    hidden, heads = _sizes(c)
    keys = {
        "context_length": c["seq_length"], "embedding_length": hidden, "feed_forward_length": 4 * hidden,
        "block_count": c["n_layer"], "attention.head_count": heads, "attention.head_count_kv": heads,
        "attention.layer_norm_epsilon": c["layer_norm_epsilon"], "vocab_size": c["vocab_size"],
    }  # fmt: skip
    return {"general.architecture": "bloom", **{f"bloom.{k}": v for k, v in keys.items()}}


def gguf_tensors(c: Mapping[str, Any], tensors: Arrays) -> Arrays:
    """Tensors under their GGUF names, with the rows of q, k and v in GGUF's order."""
    hidden, heads = _sizes(c)
    return {gguf_name(c, name): in_blocks(name, x, heads, heads, hidden // heads) for name, x in tensors.items()}
