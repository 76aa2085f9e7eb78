"""Rotary settings as files spell them: Hugging Face's rope_theta + rope_scaling or rope_parameters, and GGUF's keys."""

from __future__ import annotations

import math
from typing import Any

from ridgeline.errors import ModelFileError, Unsupported
from ridgeline.models.config import Rope
from ridgeline.models.header import Header
from ridgeline.models.keys import Keys

ROPE_KINDS = ("default", "linear", "llama3", "yarn")
_GGUF_KINDS = ("none", "linear", "yarn")


def rope_from_hf(k: Keys, head_dim: int, theta: float = 10000.0, kinds: tuple[str, ...] = ROPE_KINDS) -> Rope:
    """The rope of a config.json in either spelling; `theta` where it names none."""
    k.skip("rope_parameters rope_scaling")
    r = k.inside("rope_parameters" if k.data.get("rope_parameters") else "rope_scaling")
    fraction = k.number("partial_rotary_factor", 1.0)
    return scaled_rope(r, k, head_dim, fraction, k.number("rope_theta", theta), kinds)


def scaled_rope(r: Keys, k: Keys, head_dim: int, fraction: float, theta: float, kinds: tuple[str, ...]) -> Rope:
    """The rope that one scaling object `r` of the config `k` describes, over what the config says beside it."""
    r.skip("type")
    kind = r.choice("rope_type" if "rope_type" in r.data else "type", kinds, "default")
    theta, fraction = r.number("rope_theta", theta), r.number("partial_rotary_factor", fraction)
    if not 0 < fraction <= 1:
        raise r.wrong("partial_rotary_factor", f"must be over 0 and at most 1, is {fraction}")
    more: dict[str, Any] = {} if kind == "default" else {"kind": kind, "factor": r.positive("factor")}
    if kind == "llama3":
        more["original_context"] = r.integer("original_max_position_embeddings")
        more |= {key: r.positive(key) for key in ("low_freq_factor", "high_freq_factor")}
    if kind == "yarn":
        r.only(truncate=True)
        context = k.integer("max_position_embeddings", 2048)
        more["original_context"] = r.integer("original_max_position_embeddings", context)
        more |= {"beta_fast": r.positive("beta_fast", 32.0), "beta_slow": r.positive("beta_slow", 1.0)}
        more["attention_factor"] = r.positive("attention_factor") if "attention_factor" in r else None
    r.finish(f"rope_type {kind}")
    return Rope(theta, int(head_dim * fraction), **more)


def rope_from_gguf(h: Header, head_dim: int, theta: float = 10000.0) -> Rope:
    """The rope of a GGUF header; `theta` where it names none."""
    k = h.keys
    theta, dims = k.number("rope.freq_base", theta), k.integer("rope.dimension_count", head_dim)
    kind = k.choice("rope.scaling.type", _GGUF_KINDS, "none")
    if "rope_freqs.weight" in h.tensors:
        factors = h.vector("rope_freqs.weight")
        if kind != "none":
            raise Unsupported(f"{k.where}: rope_freqs.weight together with rope.scaling.type {kind!r} is not supported")
        if len(factors) != dims // 2 or not all(0 < f < math.inf for f in factors):
            raise ModelFileError(f"{k.where}: rope_freqs.weight must hold {dims // 2} positive factors")
        return Rope(theta, dims, factors=tuple(factors))
    if kind == "none":
        if k.number("rope.scaling.factor", 0) not in (0, 1):
            raise Unsupported(f"{k.where}: rope.scaling.factor without rope.scaling.type; say linear or yarn")
        return Rope(theta, dims)
    factor = k.number("rope.scaling.factor")
    original = k.integer("rope.scaling.original_context_length", k.integer("context_length")) if kind == "yarn" else 0
    return Rope(theta, dims, kind, factor, original)
