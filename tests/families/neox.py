"""Tiny GPT-NeoX models, parallel and sequential: fused q, k and v head by head, LayerNorm, partial rope."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from families.common import CONTEXT, VOCAB, Arrays

MODEL_TYPES = ("gpt_neox",)


def _neox(hidden: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "gpt_neox", "vocab_size": VOCAB, "hidden_size": hidden, "intermediate_size": 136,
        "num_hidden_layers": 2, "num_attention_heads": heads, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
        "max_position_embeddings": CONTEXT, "tie_word_embeddings": False, "use_parallel_residual": True,
        "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "float32", **more,
    }  # fmt: skip


_ROPE = {"rope_type": "linear", "factor": 2.5, "rope_theta": 5000.0, "partial_rotary_factor": 0.5}
CONFIGS: dict[str, dict[str, Any]] = {
    "pythia": _neox(240, 3, rotary_pct=0.25, rotary_emb_base=10000, rope_scaling=None),
    "neox": _neox(
        96, 6, rope_parameters=_ROPE, use_parallel_residual=False, attention_bias=False, hidden_act="gelu_new",
        tie_word_embeddings=True,
    ),
}  # fmt: skip
NOT_GGUF = ("neox",)  # an activation that GGUF cannot say


def norm_base(name: str) -> float:
    """What stored norm weights lie around."""
    return 1.0


def shapes(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model under its Hugging Face name."""
    hidden, ffn = c["hidden_size"], c["intermediate_size"]
    found: dict[str, tuple[int, ...]] = {"gpt_neox.embed_in.weight": (c["vocab_size"], hidden)}
    for i in range(c["num_hidden_layers"]):
        p = f"gpt_neox.layers.{i}"
        found |= linear(f"{p}.attention.query_key_value", 3 * hidden, hidden, c.get("attention_bias", True))
        found |= linear(f"{p}.attention.dense", hidden, hidden, c.get("attention_bias", True))
        found |= linear(f"{p}.mlp.dense_h_to_4h", ffn, hidden) | linear(f"{p}.mlp.dense_4h_to_h", hidden, ffn)
        found |= norm(f"{p}.input_layernorm", hidden) | norm(f"{p}.post_attention_layernorm", hidden)
    found |= norm("gpt_neox.final_layer_norm", hidden)
    if not c["tie_word_embeddings"]:
        found["embed_out.weight"] = (c["vocab_size"], hidden)
    return found


def linear(name: str, out: int, columns: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, columns), **({f"{name}.bias": (out,)} if bias else {})}


def norm(name: str, hidden: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}


GGUF_NAMES = {
    "embed_in": "token_embd", "final_layer_norm": "output_norm", "embed_out": "output",
    "query_key_value": "attn_qkv", "dense": "attn_output", "dense_h_to_4h": "ffn_up", "dense_4h_to_h": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def gguf_name(c: Mapping[str, Any], name: str, names: Mapping[str, str] = GGUF_NAMES) -> str:
    """A Hugging Face tensor name as GGUF spells it."""
    *path, stem, kind = name.split(".")
    layer = f"blk.{path[2]}." if len(path) > 2 else ""
    return f"{layer}{names[stem]}.{kind}"


def in_blocks(name: str, x: np.ndarray, heads: int, kv_heads: int, dim: int) -> np.ndarray:
    """Fused rows as converters write them: all of q, then all of k, then v, instead of a KV head's queries, k and v."""
    if "query_key_value" not in name:
        return x
    groups = x.reshape(kv_heads, heads // kv_heads + 2, dim, -1)
    parts = groups[:, :-2], groups[:, -2], groups[:, -1]
    return np.concatenate([p.reshape(-1, *x.shape[1:]) for p in parts])


def gguf_metadata(c: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a GGUF file by name, as converters write them."""
    heads = c["num_attention_heads"]
    keys = {
        "context_length": c["max_position_embeddings"], "embedding_length": c["hidden_size"],
        "block_count": c["num_hidden_layers"], "feed_forward_length": c["intermediate_size"],
        "rope.dimension_count": int(c["rotary_pct"] * (c["hidden_size"] // heads)), "attention.head_count": heads,
        "use_parallel_residual": c["use_parallel_residual"], "attention.layer_norm_epsilon": c["layer_norm_eps"],
        "vocab_size": c["vocab_size"],
    }  # fmt: skip
    return {"general.architecture": "gptneox", **{f"gptneox.{k}": v for k, v in keys.items()}}


def gguf_tensors(c: Mapping[str, Any], tensors: Arrays) -> Arrays:
    """Tensors under their GGUF names, with the rows of q, k and v in GGUF's order."""
    heads = c["num_attention_heads"]
    dim = c["hidden_size"] // heads
    return {gguf_name(c, name): in_blocks(name, x, heads, heads, dim) for name, x in tensors.items()}
