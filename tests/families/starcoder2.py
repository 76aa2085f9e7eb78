"""Tiny StarCoder2 models: Llama's names, biases of norms and matrices, an MLP of c_fc and c_proj."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from families import llama
from families.common import Arrays, config

MODEL_TYPES = ("starcoder2",)


def _config(hidden: int, heads: int, **more: Any) -> dict[str, Any]:
    base = config("starcoder2", hidden, heads, norm_epsilon=1e-5, norm_type="layer_norm", mlp_type="default")
    del base["rms_norm_eps"]
    return {**base, "hidden_act": "gelu_pytorch_tanh", "use_bias": True, "tie_word_embeddings": True, **more}


CONFIGS: dict[str, dict[str, Any]] = {
    "starcoder2": _config(240, 3, rope_theta=999999.4420358813, sliding_window=24),
    "starcoder2u": _config(
        96, 6, rope_theta=1e5, sliding_window=None, use_bias=False, tie_word_embeddings=False, hidden_act="gelu"
    ),
}
NOT_GGUF = ("starcoder2u",)  # an activation that GGUF cannot say


def norm_base(name: str) -> float:
    """What stored norm weights lie around; the last one keeps logits of a wide tied head from growing with it."""
    return 0.25 if name == "model.norm.weight" else 1.0


def shapes(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model under its Hugging Face name."""
    hidden, ffn, found = c["hidden_size"], c["intermediate_size"], {}
    for name, shape in llama.shapes(c).items():
        if ".mlp." in name:
            continue
        found[name] = shape
        if "norm" in name or ("self_attn" in name and c["use_bias"]):
            found[name.replace(".weight", ".bias")] = shape[:1]
    for i in range(c["num_hidden_layers"]):
        for name, shape in {"c_fc": (ffn, hidden), "c_proj": (hidden, ffn)}.items():
            found[f"model.layers.{i}.mlp.{name}.weight"] = shape
            if c["use_bias"]:
                found[f"model.layers.{i}.mlp.{name}.bias"] = shape[:1]
    return found


def gguf_name(c: Mapping[str, Any], name: str) -> str:
    return llama.gguf_name(c, name.replace("c_fc", "up_proj").replace("c_proj", "down_proj"))


def gguf_metadata(c: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a GGUF file by name, as converters write them."""
    keys = llama.gguf_keys({**c, "rms_norm_eps": c["norm_epsilon"]})
    keys["attention.layer_norm_epsilon"] = keys.pop("attention.layer_norm_rms_epsilon")
    keys["attention.sliding_window"] = c["sliding_window"] or 0
    return {"general.architecture": "starcoder2", **{f"starcoder2.{k}": v for k, v in keys.items()}}


def gguf_tensors(c: Mapping[str, Any], tensors: Arrays) -> Arrays:
    """Tensors under their GGUF names."""
    return {gguf_name(c, name): x for name, x in tensors.items()}
