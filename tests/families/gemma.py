"""Tiny Gemma 1, 2 and 3 models: Llama's tensors, norms after each block from Gemma 2 on, norms stored as weight - 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from families import llama
from families.common import Arrays, config

MODEL_TYPES = ("gemma", "gemma2", "gemma3_text")
_ARCHITECTURES = {"gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3"}


def _gemma(family: str, layers: int, **more: Any) -> dict[str, Any]:
    base = config(family, 96, 6, layers, head_dim=80, tie_word_embeddings=True)
    return {**base, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", **more}


_TWO_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma": _gemma("gemma", 2, rope_theta=1e4),
    "gemma2": _gemma(
        "gemma2", 3, rope_theta=1e4, sliding_window=24, query_pre_attn_scalar=80,
        attn_logit_softcapping=5.0, final_logit_softcapping=4.0,
    ),
    "gemma2s": _gemma(
        "gemma2", 2, rope_theta=1e4, sliding_window=70, query_pre_attn_scalar=20,
        attn_logit_softcapping=None, final_logit_softcapping=None,
    ),
    "gemma3": _gemma(
        "gemma3_text", 7, rope_theta=1e6, rope_local_base_freq=1e4, sliding_window=24, query_pre_attn_scalar=80,
    ),
    "gemma3s": _gemma(
        "gemma3_text", 3, rope_parameters=_TWO_ROPES, sliding_window=70, query_pre_attn_scalar=30,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
    ),
}  # fmt: skip
NOT_GGUF = ("gemma2s", "gemma3s")  # a scale of scores, a layer pattern that GGUF cannot say


def shapes(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model under its Hugging Face name."""
    found, hidden = llama.shapes(c), (c["hidden_size"],)
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}"
        if c["model_type"] != "gemma":
            found |= {f"{p}.{x}_feedforward_layernorm.weight": hidden for x in ("pre", "post")}
        if c["model_type"] == "gemma3_text":
            found |= {f"{p}.self_attn.{x}_norm.weight": (c["head_dim"],) for x in "qk"}
    return found


def norm_base(name: str) -> float:
    """Norms are stored as weight - 1."""
    return 0.0


_GGUF_NAMES = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip


def gguf_name(c: Mapping[str, Any], name: str) -> str:
    stem = name.split(".")[-2]
    if c["model_type"] != "gemma" and stem in _GGUF_NAMES:
        return f"blk.{name.split('.')[2]}.{_GGUF_NAMES[stem]}.weight"
    return llama.gguf_name(c, name)


def gguf_metadata(c: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a GGUF file by name, as converters write them."""
    arch, more = _ARCHITECTURES[c["model_type"]], {}
    if c["model_type"] != "gemma":
        more["attention.sliding_window"] = c["sliding_window"]
    if c["model_type"] == "gemma2":
        more["attn_logit_softcapping"] = c["attn_logit_softcapping"]
        more["final_logit_softcapping"] = c["final_logit_softcapping"]
    if c["model_type"] != "gemma3_text":
        assert c["rope_theta"] == 1e4  # what files of Gemma 1 and 2 leave out
    keys = llama.gguf_keys(c)
    del keys["rope.dimension_count"]
    if c["model_type"] != "gemma3_text":
        del keys["rope.freq_base"]
    return {"general.architecture": arch, **{f"{arch}.{k}": v for k, v in {**keys, **more}.items()}}


def gguf_tensors(c: Mapping[str, Any], tensors: Arrays) -> Arrays:
    """Tensors under their GGUF names; norms hold the whole weight there."""
    return {gguf_name(c, name): x + np.float32(1) if x.ndim == 1 else x for name, x in tensors.items()}
