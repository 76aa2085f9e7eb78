"""Tiny Llama, Mistral, Qwen2, Qwen3 models: configs, tensors by their Hugging Face names, and what GGUF has of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from families.common import Arrays, config

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


_LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": config("llama", 96, 6, rope_theta=10000.0, rope_scaling=None),
    "llama3": config("llama", 96, 6, rope_parameters={"rope_theta": 500000.0, **_LLAMA3}),
    "linear": config("llama", 96, 3, rope_theta=1e4, rope_scaling={"type": "linear", "factor": 2.5}),
    "yarn": config("llama", 96, 6, rope_theta=1e4, rope_scaling=_YARN),
    "biased": config("llama", 96, 6, attention_bias=True, mlp_bias=True, rope_theta=1e4),
    "mistral": config("mistral", 96, 6, layers=3, head_dim=24, sliding_window=24, rope_theta=1e4),
    "smollm": config("llama", 144, 9, layers=3, tie_word_embeddings=True, rope_theta=1e5, rope_interleaved=False),
    "qwen2": config("qwen2", 96, 6, rope_theta=1e6, sliding_window=512, use_sliding_window=False, max_window_layers=2),
    "qwen2w": config(
        "qwen2", 96, 6, 4, rope_theta=1e6, sliding_window=40, use_sliding_window=True, max_window_layers=2
    ),
    "qwen3": config("qwen3", 96, 6, layers=3, head_dim=80, rope_theta=1e6, tie_word_embeddings=True),
}  # fmt: skip
NOT_GGUF = ("qwen2w",)  # GGUF cannot say which layers have a window


def head_dim(c: Mapping[str, Any]) -> int:
    return int(c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"])


def norm_base(name: str) -> float:
    """What stored norm weights lie around."""
    return 1.0


def shapes(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model under its Hugging Face name."""
    hidden, ffn, dim = c["hidden_size"], c["intermediate_size"], head_dim(c)
    q, kv = c["num_attention_heads"] * dim, c["num_key_value_heads"] * dim
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c["vocab_size"], hidden)}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}"
        matrices = {
            "self_attn.q_proj": (q, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, q), "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
        }  # fmt: skip
        found |= {f"{p}.{name}.weight": shape for name, shape in matrices.items()}
        found |= {f"{p}.{name}.bias": matrices[name][:1] for name in _biased(c)}
        found |= {f"{p}.input_layernorm.weight": (hidden,), f"{p}.post_attention_layernorm.weight": (hidden,)}
        if c["model_type"] == "qwen3":
            found |= {f"{p}.self_attn.{x}_norm.weight": (dim,) for x in "qk"}
    found["model.norm.weight"] = (hidden,)
    if not c["tie_word_embeddings"]:
        found["lm_head.weight"] = (c["vocab_size"], hidden)
    return found


def _biased(c: Mapping[str, Any]) -> list[str]:
    names = []
    if c["model_type"] == "qwen2" or c.get("attention_bias"):
        names += ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    if c.get("attention_bias"):
        names += ["self_attn.o_proj"]
    if c.get("mlp_bias"):
        names += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    return names


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_name(c: Mapping[str, Any], name: str) -> str:
    """A Hugging Face tensor name as GGUF spells it."""
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, i, rest = stem.split(".", 3)
        return f"blk.{i}.{_GGUF_NAMES[rest]}.{kind}"
    return f"{_GGUF_NAMES[stem]}.{kind}"


def _permuted(c: Mapping[str, Any], name: str, x: np.ndarray) -> np.ndarray:
    """Rows as Llama's GGUF files order them: the two halves of each head interleaved."""
    heads = {"q_proj": c["num_attention_heads"], "k_proj": c["num_key_value_heads"]}.get(name.split(".")[-2])
    if heads is None or c["model_type"] not in ("llama", "mistral"):
        return x
    return x.reshape(heads, 2, len(x) // heads // 2, -1).swapaxes(1, 2).reshape(x.shape)


def _rope_of(c: Mapping[str, Any]) -> tuple[float, Mapping[str, Any]]:
    scaling = c.get("rope_parameters") or c.get("rope_scaling") or {}
    return scaling.get("rope_theta", c.get("rope_theta")), scaling


def _llama3_factors(c: Mapping[str, Any]) -> np.ndarray:
    """What Llama 3's scaling divides each frequency by, from wavelengths (the rope_freqs tensor of GGUF files)."""
    theta, s = _rope_of(c)
    wave = 2 * np.pi * theta ** (np.arange(0, head_dim(c), 2) / head_dim(c))
    old, low, high = s["original_max_position_embeddings"], s["low_freq_factor"], s["high_freq_factor"]
    smooth = (old / wave - low) / (high - low)
    middle = 1 / ((1 - smooth) / s["factor"] + smooth)
    return np.where(wave < old / high, 1.0, np.where(wave > old / low, s["factor"], middle)).astype(np.float32)


def gguf_keys(c: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that every architecture has, without their prefix."""
    return {
        "vocab_size": c["vocab_size"], "context_length": c["max_position_embeddings"],
        "embedding_length": c["hidden_size"], "block_count": c["num_hidden_layers"],
        "feed_forward_length": c["intermediate_size"], "attention.head_count": c["num_attention_heads"],
        "attention.head_count_kv": c["num_key_value_heads"], "attention.layer_norm_rms_epsilon": c["rms_norm_eps"],
        "attention.key_length": head_dim(c), "attention.value_length": head_dim(c),
        "rope.dimension_count": head_dim(c), "rope.freq_base": _rope_of(c)[0],
    }  # fmt: skip


def gguf_metadata(c: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a GGUF file by name; the architecture's own ones carry its prefix."""
    arch = "llama" if c["model_type"] == "mistral" else c["model_type"]
    keys, scaling = gguf_keys(c), _rope_of(c)[1]
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in ("linear", "yarn"):
        keys |= {"rope.scaling.type": kind, "rope.scaling.factor": scaling["factor"]}
    if kind == "yarn":
        keys["rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
    if c["model_type"] == "mistral":
        keys["attention.sliding_window"] = c["sliding_window"]
    return {"general.architecture": arch, **{f"{arch}.{k}": v for k, v in keys.items()}}


def gguf_tensors(c: Mapping[str, Any], tensors: Arrays) -> Arrays:
    """Tensors under their GGUF names, with the rows of q and k in GGUF's order."""
    found = {gguf_name(c, name): _permuted(c, name, x) for name, x in tensors.items()}
    if _rope_of(c)[1].get("rope_type") == "llama3":
        found["rope_freqs.weight"] = _llama3_factors(c)
    return found
