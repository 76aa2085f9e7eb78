"""Rotary settings as files spell them: Hugging Face's rope_theta + rope_scaling or rope_parameters, and GGUF's keys."""

from __future__ import annotations

import math
from typing import Any

from ridgeline.errors import ModelFileError, Unsupported
from ridgeline.models.config import Rope
from ridgeline.models.header import Header
from ridgeline.models.keys import Keys

ROPE_KINDS = ("default", "linear", "llama3", "yarn")
_LONGROPE = ("longrope", "su")  # "su" in the first files
_GGUF_KINDS = ("none", "linear", "yarn")


def rope_from_hf(
    k: Keys, head_dim: int, theta: float = 10000.0, kinds: tuple[str, ...] = ROPE_KINDS, fraction: float = 1.0
) -> Rope:
    """The rope of a config.json in either spelling; `theta`, and the rotated `fraction` of heads, where it has none."""
    k.skip("rope_parameters rope_scaling")
    r = k.inside("rope_parameters" if k.data.get("rope_parameters") else "rope_scaling")
    fraction = k.number("partial_rotary_factor", fraction)
    return scaled_rope(r, k, head_dim, fraction, k.number("rope_theta", theta), kinds)


def scaled_rope(r: Keys, k: Keys, head_dim: int, fraction: float, theta: float, kinds: tuple[str, ...]) -> Rope:
    """The rope that one scaling object `r` of the config `k` describes, over what the config says beside it."""
    r.skip("type")
    kind = r.choice("rope_type" if "rope_type" in r.data else "type", kinds, "default")
    theta, fraction = r.number("rope_theta", theta), r.number("partial_rotary_factor", fraction)
    if not 0 < fraction <= 1:
        raise r.wrong("partial_rotary_factor", f"must be over 0 and at most 1, is {fraction}")
    dims, more = int(head_dim * fraction), {}
    if kind in _LONGROPE:
        more = _longrope(r, k, dims // 2)
    elif kind != "default":
        more = {"kind": kind, "factor": r.positive("factor")}
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
    return Rope(theta, dims, **more)


def _longrope(r: Keys, k: Keys, count: int) -> dict[str, Any]:
    """LongRoPE (Ding et al. 2024): the set of factors for the context that the config declares, and the temperature
    of scores. The original context lies beside the scaling object, as Phi-3 has it."""
    context, original = k.integer("max_position_embeddings", 4096), k.integer("original_max_position_embeddings", 4096)
    r.only(original_max_position_embeddings=original)
    if original < 1 or (original == 1 and "attention_factor" not in r):
        raise k.wrong("original_max_position_embeddings", f"must be over 1, is {original}")
    scale = r.positive("factor", context / original)
    temperature = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 and original > 1 else 1.0
    short, long = (_factors(r.get(key), count, r.label(key)) for key in ("short_factor", "long_factor"))
    return {
        "factors": long if context > original else short,
        "short_factors": short,
        "original_context": original,
        "attention_factor": r.positive("attention_factor", temperature),
    }


def _factors(values: Any, count: int, label: str) -> tuple[float, ...]:
    known = isinstance(values, list) and len(values) == count
    if not known or not all(type(f) in (int, float) and 0 < f < 1e30 for f in values):
        raise ModelFileError(f"{label} must hold {count} positive factors")
    return tuple(float(f) for f in values)


def rope_from_gguf(h: Header, head_dim: int, theta: float = 10000.0) -> Rope:
    """The rope of a GGUF header; `theta` where it names none."""
    k = h.keys
    theta, dims = k.number("rope.freq_base", theta), k.integer("rope.dimension_count", head_dim)
    kind = k.choice("rope.scaling.type", _GGUF_KINDS, "none")
    if "rope_freqs.weight" in h.tensors:
        if kind != "none":
            raise Unsupported(f"{k.where}: rope_freqs.weight together with rope.scaling.type {kind!r} is not supported")
        factors = _factors(h.vector("rope_freqs.weight"), dims // 2, f"{k.where}: rope_freqs.weight")
        return Rope(theta, dims, factors=factors)
    if kind == "none":
        if k.number("rope.scaling.factor", 0) not in (0, 1):
            raise Unsupported(f"{k.where}: rope.scaling.factor without rope.scaling.type; say linear or yarn")
        return Rope(theta, dims)
    factor = k.number("rope.scaling.factor")
    original = k.integer("rope.scaling.original_context_length", k.integer("context_length")) if kind == "yarn" else 0
    return Rope(theta, dims, kind, factor, original)


def longrope_from_gguf(h: Header, head_dim: int) -> Rope:
    """The rope of a GGUF header, with LongRoPE's factors for the declared context where the file is of a long model."""
    k = h.keys
    context = k.integer("context_length")
    original = k.integer("rope.scaling.original_context_length", context)
    if context <= original and "rope_factors_short.weight" not in h.tensors:
        return rope_from_gguf(h, head_dim)
    k.choice("rope.scaling.type", ("longrope",), "longrope")
    theta, dims = k.number("rope.freq_base", 10000.0), k.integer("rope.dimension_count", head_dim)
    long, short = (
        _factors(h.vector(name), dims // 2, f"{k.where}: {name}")
        for name in ("rope_factors_long.weight", "rope_factors_short.weight")
    )
    return Rope(
        theta, dims, factors=long if context > original else short, short_factors=short, original_context=original,
        attention_factor=k.positive("rope.scaling.attn_factor"),
    )  # fmt: skip
