"""Gemma 1, 2 and 3 (text): scaled embeddings, GeGLU, and from Gemma 2 on norms after each block and local layers.

Gemma 2 caps scores and logits; Gemma 3 has QK-norm instead, and its local layers their own rope base.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ridgeline.errors import ModelFileError
from ridgeline.models import settings
from ridgeline.models.config import ModelConfig, Rope
from ridgeline.models.decoder import forward, logits
from ridgeline.models.header import Header, decoder
from ridgeline.models.keys import Keys
from ridgeline.models.rope import ROPE_KINDS, rope_from_gguf, rope_from_hf, scaled_rope

__all__ = ["forward", "from_gguf", "from_hf", "logits"]

_PATTERN = {"gemma": 1, "gemma2": 2, "gemma3_text": 6}  # every so many layers one is global
_LOCAL_THETA = 10000.0


def from_hf(k: Keys, name: str) -> ModelConfig:
    if name == "gemma":
        k.choice("hidden_act", ("gelu_pytorch_tanh", "gelu"), "gelu_pytorch_tanh")  # both mean the tanh form
    k.skip("hidden_act cache_implementation")
    k.only(hidden_activation="gelu_pytorch_tanh")
    k.only(attention_bias=False, use_bidirectional_attention=False)
    fields = settings.decoder(k, context=None, tied=True, head_dim=256)
    rope, local_rope = _ropes(k, name, fields["head_dim"])
    return ModelConfig(
        family=name,
        n_kv_heads=k.integer("num_key_value_heads"),
        ffn=k.integer("intermediate_size"),
        norm_eps=k.number("rms_norm_eps", 1e-6),
        rope=rope,
        local_rope=local_rope,
        windows=_windows(k, name, fields["layers"]),
        attention_scale=0.0 if name == "gemma" else k.positive("query_pre_attn_scalar", 256) ** -0.5,
        **_caps(k, name),
        **_shape(name, fields["hidden"]),
        **fields,
    )


def from_gguf(h: Header, name: str) -> ModelConfig:
    k, fields = h.keys, decoder(h)
    layers, hidden, heads = fields["layers"], fields["hidden"], fields["n_heads"]
    # The two 27B models scale scores by their hidden size a head, which the files do not say; the others by head_dim.
    per_head = (name, layers) in (("gemma2", 46), ("gemma3_text", 62))
    rope = rope_from_gguf(h, fields["head_dim"], 1e6 if name == "gemma3_text" else 1e4)
    local = Rope(k.number("rope.freq_base_swa", _LOCAL_THETA), rope.dims) if name == "gemma3_text" else None
    return ModelConfig(
        family=name,
        rope=rope,
        local_rope=local,
        windows=_gguf_windows(k, name, layers),
        attention_scale=0.0 if name == "gemma" else (hidden / heads if per_head else fields["head_dim"]) ** -0.5,
        attention_softcap=k.number("attn_logit_softcapping", 50.0) if name == "gemma2" else 0.0,
        logit_softcap=k.number("final_logit_softcapping", 30.0) if name == "gemma2" else 0.0,
        **_shape(name, hidden),
        **fields,
    )


def _shape(name: str, hidden: int) -> dict[str, Any]:
    return {
        "embed_scale": float(np.float32(hidden**0.5)) if hidden > 0 else 1.0,
        "activation": "gelu_tanh",
        "residual": "sequential" if name == "gemma" else "sandwich",
        "qk_norm": name == "gemma3_text",
    }


def _caps(k: Keys, name: str) -> dict[str, float]:
    """Soft caps. Gemma 2's are on where the keys are missing, off where they say null; Gemma 3 has none on scores."""
    if name == "gemma":
        return {}
    if name == "gemma3_text":
        k.only(attn_logit_softcapping=None)
        return {"logit_softcap": k.number("final_logit_softcapping", 0.0)}
    keys = {"attention_softcap": ("attn_logit_softcapping", 50.0), "logit_softcap": ("final_logit_softcapping", 30.0)}
    return {field: k.number(key, 0.0 if key in k.data else usual) for field, (key, usual) in keys.items()}


def _ropes(k: Keys, name: str, head_dim: int) -> tuple[Rope, Rope | None]:
    """The rope of global layers, and of local ones: two objects in new configs, rope_local_base_freq in old ones."""
    if name != "gemma3_text":
        return rope_from_hf(k, head_dim), None
    local = k.number("rope_local_base_freq", _LOCAL_THETA)
    r = k.inside("rope_parameters")
    if "full_attention" not in r and "sliding_attention" not in r:
        return rope_from_hf(k, head_dim, 1e6), Rope(local, head_dim)
    k.skip("rope_theta rope_scaling")
    whole, window = (r.inside(kind) for kind in ("full_attention", "sliding_attention"))
    r.finish(name)
    return (
        scaled_rope(whole, k, head_dim, 1.0, 1e6, ROPE_KINDS),
        scaled_rope(window, k, head_dim, 1.0, local, ROPE_KINDS),
    )


def _windows(k: Keys, name: str, layers: int) -> tuple[int, ...]:
    every = _PATTERN[name]
    if every == 1:
        return ()
    window = settings.window(k, 4096)
    k.skip("_sliding_window_pattern")
    every = k.integer("sliding_window_pattern", k.data.get("_sliding_window_pattern") or every)
    local = settings.layer_types(k, layers)
    return _alternating(window, every, layers) if local is None else tuple(window if x else 0 for x in local)


def _gguf_windows(k: Keys, name: str, layers: int) -> tuple[int, ...]:
    """Files name a window but seldom which layers have it; then it is the family's pattern."""
    if name == "gemma":
        return ()
    window = k.integer("attention.sliding_window", 4096 if name == "gemma2" else None)
    pattern = k.get("attention.sliding_window_pattern", _PATTERN[name])
    if isinstance(pattern, np.ndarray) and pattern.dtype == bool and len(pattern) == layers:
        return tuple(window if local else 0 for local in pattern.tolist())
    if not isinstance(pattern, int):
        raise k.wrong("attention.sliding_window_pattern", "must be an integer, or say true or false for each layer")
    return _alternating(window, pattern, layers)


def _alternating(window: int, every: int, layers: int) -> tuple[int, ...]:
    """Local layers with each `every`-th one global."""
    if every <= 0 or not 0 < layers <= 1000:
        raise ModelFileError(f"sliding window pattern {every} over {layers} layers is out of range")
    return tuple(0 if (i + 1) % every == 0 else window for i in range(layers))
