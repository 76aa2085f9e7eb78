"""Tiny GPT-2 and GPTBigCode models: matrices stored [in, out] in GPT-2, one KV head in GPTBigCode, q, k, v in one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from families.common import CONTEXT, VOCAB, Arrays

MODEL_TYPES = ("gpt2", "gpt_bigcode")
_ARCHITECTURES = {"gpt2": "gpt2", "gpt_bigcode": "starcoder"}


def _config(family: str, hidden: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": family, "vocab_size": VOCAB, "n_embd": hidden, "n_layer": 2, "n_head": heads,
        "n_positions": CONTEXT, "n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0,
        "attn_pdrop": 0.1, "summary_type": "cls_index", "torch_dtype": "float32", **more,
    }  # fmt: skip


CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": _config("gpt2", 240, 3, n_ctx=CONTEXT),
    "gpt2u": _config("gpt2", 36, 3, n_layer=3, n_inner=72, activation_function="gelu", tie_word_embeddings=False),
    "bigcode": _config("gpt_bigcode", 240, 3, n_inner=136, multi_query=True, activation_function="gelu_pytorch_tanh"),
    "bigcodeh": _config("gpt_bigcode", 72, 3, multi_query=False, activation_function="gelu"),
}
NOT_GGUF = ("gpt2u", "bigcodeh")  # an activation that GGUF cannot say, and a KV head for each query head


def norm_base(name: str) -> float:
    """What stored norm weights lie around; the last one keeps logits of a wide tied head from growing with it."""
    return 0.25 if "ln_f" in name else 1.0


def _kv_heads(c: Mapping[str, Any]) -> int:
    return 1 if c.get("multi_query") else c["n_head"]


def shapes(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model under its Hugging Face name."""
    hidden, ffn = c["n_embd"], c["n_inner"] or 4 * c["n_embd"]
    qkv = hidden + 2 * _kv_heads(c) * hidden // c["n_head"]
    found: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (c["vocab_size"], hidden), "transformer.wpe.weight": (c["n_positions"], hidden)
    }  # fmt: skip
    norms = ["transformer.ln_f"]
    for i in range(c["n_layer"]):
        p = f"transformer.h.{i}"
        norms += [f"{p}.ln_1", f"{p}.ln_2"]
        matrices = {
            "attn.c_attn": (qkv, hidden), "attn.c_proj": (hidden, hidden), "mlp.c_fc": (ffn, hidden),
            "mlp.c_proj": (hidden, ffn),
        }  # fmt: skip
        turned = -1 if c["model_type"] == "gpt2" else 1
        found |= {f"{p}.{name}.weight": shape[::turned] for name, shape in matrices.items()}
        found |= {f"{p}.{name}.bias": shape[:1] for name, shape in matrices.items()}
    found |= {f"{name}.{kind}": (hidden,) for name in norms for kind in ("weight", "bias")}
    if not c["tie_word_embeddings"]:
        found["lm_head.weight"] = (c["vocab_size"], hidden)
    return found


_GGUF_NAMES = {
    "transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
    "lm_head": "output", "ln_1": "attn_norm", "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip


def gguf_name(c: Mapping[str, Any], name: str) -> str:
    """A Hugging Face tensor name as GGUF spells it."""
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("transformer.h."):
        _, _, i, rest = stem.split(".", 3)
        return f"blk.{i}.{_GGUF_NAMES[rest]}.{kind}"
    return f"{_GGUF_NAMES[stem]}.{kind}"


def gguf_metadata(c: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a GGUF file by name, as converters write them."""
    arch = _ARCHITECTURES[c["model_type"]]
    keys = {
        "vocab_size": c["vocab_size"], "context_length": c["n_positions"], "embedding_length": c["n_embd"],
        "feed_forward_length": c["n_inner"] or 4 * c["n_embd"], "block_count": c["n_layer"],
        "attention.head_count": c["n_head"], "attention.layer_norm_epsilon": c["layer_norm_epsilon"],
    }  # fmt: skip
    if arch == "starcoder":
        keys["attention.head_count_kv"] = 1
    return {"general.architecture": arch, **{f"{arch}.{k}": v for k, v in keys.items()}}


def gguf_tensors(c: Mapping[str, Any], tensors: Arrays) -> Arrays:
    """Tensors under their GGUF names; matrices are [out, in] there."""
    turned = [n for n, x in tensors.items() if c["model_type"] == "gpt2" and x.ndim == 2 and ".h." in n]
    return {gguf_name(c, name): x.T.copy() if name in turned else x for name, x in tensors.items()}
