"""Strict reading of Hugging Face config.json into ModelConfig."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ridgeline.errors import ModelFileError, Unsupported
from ridgeline.models.config import ModelConfig, Rope

# Keys that do not change what a forward pass computes (or are read by the tokenizer and generation settings).
_IGNORED = frozenset(
    "_name_or_path architectures auto_map bos_token_id eos_token_id pad_token_id unk_token_id torch_dtype dtype "
    "transformers_version transformers.js_config use_cache initializer_range is_llama_config "
    "attention_dropout pretraining_tp model_type quantization_config_path output_attentions output_hidden_states "
    "return_dict id2label label2id chunk_size_feed_forward problem_type "
    "embd_pdrop hidden_dropout resid_pdrop bad_words_ids begin_suppress_tokens "
    "task_specific_params tokenizer_class prefix decoder_start_token_id".split()
)
_READ = frozenset(
    "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim intermediate_size "
    "rms_norm_eps rope_theta rope_scaling rope_parameters max_position_embeddings tie_word_embeddings "
    "hidden_act".split()
)
_QWEN = "sliding_window use_sliding_window max_window_layers layer_types"
_FAMILIES = {  # with the keys that only this family has
    "llama": frozenset(("attention_bias", "mlp_bias")),
    "mistral": frozenset(("sliding_window",)),
    "qwen2": frozenset(_QWEN.split()),
    "qwen3": frozenset(("attention_bias", *_QWEN.split())),
}
_ROPE_READ = {
    "default": frozenset(),
    "linear": frozenset(("factor",)),
    "llama3": frozenset("factor original_max_position_embeddings low_freq_factor high_freq_factor".split()),
    "yarn": frozenset("factor original_max_position_embeddings beta_fast beta_slow attention_factor truncate".split()),
}
_ROPE_COMMON = frozenset("rope_type type rope_theta partial_rotary_factor".split())
_MAX_NUMBER = 1e30  # also refuses NaN and infinity, which Python's JSON reader lets through


class _Keys:
    """Typed access to a JSON object; every error names file and key."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data, self.where = data, where

    def number(self, key: str, default: float | None = None) -> float:
        value = self.data.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ModelFileError(f"{self.where}: {key} must be a number, is {value!r}")
        if not abs(value) < _MAX_NUMBER:
            raise ModelFileError(f"{self.where}: {key} must be a finite number of usual size")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if not isinstance(value, int):
            raise ModelFileError(f"{self.where}: {key} must be an integer, is {value!r}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.data.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise ModelFileError(f"{self.where}: {key} must be true or false, is {value!r}")
        return value


def from_hf(data: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """ModelConfig of a Llama-like model. Unsupported names an architecture, key or value that is not built."""
    family = data.get("model_type")
    if not isinstance(family, str) or family not in _FAMILIES:
        raise Unsupported(f"{where}: model_type {family!r} is not supported; supported: {', '.join(_FAMILIES)}")
    unknown = [k for k, v in data.items() if v and k not in _READ | _IGNORED | _FAMILIES[family]]
    if unknown:
        raise Unsupported(f"{where}: key {unknown[0]!r} = {data[unknown[0]]!r} is not understood for {family}")
    k = _Keys(data, where)
    if data.get("hidden_act", "silu") != "silu":
        raise Unsupported(f"{where}: hidden_act {data['hidden_act']!r} is not supported; supported: silu")
    hidden, heads = k.integer("hidden_size"), k.integer("num_attention_heads")
    layers = k.integer("num_hidden_layers")
    if not 0 < heads <= hidden or not 0 < layers <= 1000:
        raise ModelFileError(f"{where}: num_attention_heads {heads}, num_hidden_layers {layers} are out of range")
    head_dim = k.integer("head_dim", 128 if family == "qwen3" else hidden // heads)
    if data.get("head_dim") is None and family != "qwen3" and hidden % heads:
        raise ModelFileError(f"{where}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    biased = k.flag("attention_bias", False)
    return ModelConfig(
        family=family,
        vocab=k.integer("vocab_size"),
        hidden=hidden,
        layers=layers,
        n_heads=heads,
        n_kv_heads=k.integer("num_key_value_heads", heads if family == "llama" else None),
        head_dim=head_dim,
        ffn=k.integer("intermediate_size"),
        norm_eps=k.number("rms_norm_eps", 1e-6),
        rope=_rope(k, head_dim),
        context=k.integer("max_position_embeddings", 2048),
        tied=k.flag("tie_word_embeddings", False),
        qkv_bias=biased or family == "qwen2",
        o_bias=biased,
        mlp_bias=k.flag("mlp_bias", False),
        qk_norm=family == "qwen3",
        windows=_windows(k, family, layers),
    )


def _windows(k: _Keys, family: str, layers: int) -> tuple[int, ...]:
    """Mistral: one window for all layers. Qwen: only if use_sliding_window, in the layers that layer_types names
    or from layer max_window_layers on. Missing keys mean what they mean in transformers."""
    if family == "llama":
        return ()
    types = k.data.get("layer_types")
    known = ("full_attention", "sliding_attention")
    if types is not None and (
        not isinstance(types, list) or len(types) != layers or any(t not in known for t in types)
    ):
        raise Unsupported(f"{k.where}: layer_types must list {layers} of {', '.join(known)}")
    if k.data.get("sliding_window", 0) is None or (family != "mistral" and not k.flag("use_sliding_window", False)):
        if types is not None and known[1] in types:
            raise ModelFileError(f"{k.where}: layer_types names sliding_attention, but no sliding_window is in use")
        return ()
    window = k.integer("sliding_window", 4096)
    if window <= 0:
        raise ModelFileError(f"{k.where}: sliding_window must be positive, is {window}")
    if types is not None:
        return tuple(window if t == known[1] else 0 for t in types)
    first = k.integer("max_window_layers", 28) if family != "mistral" else 0
    return tuple(window if i >= first else 0 for i in range(layers))


def _rope(k: _Keys, head_dim: int) -> Rope:
    """Both spellings: rope_theta + rope_scaling, and rope_parameters."""
    scaling = k.data.get("rope_parameters") or k.data.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise ModelFileError(f"{k.where}: rope_scaling must be an object, is {scaling!r}")
    r = _Keys(scaling, f"{k.where}: rope_scaling")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if not isinstance(kind, str) or kind not in _ROPE_READ:
        raise Unsupported(f"{r.where}: rope_type {kind!r} is not supported; supported: {', '.join(_ROPE_READ)}")
    unknown = [key for key, v in scaling.items() if v and key not in _ROPE_COMMON | _ROPE_READ[kind]]
    if unknown:
        raise Unsupported(f"{r.where}: {unknown[0]} = {scaling[unknown[0]]!r} is not understood for rope_type {kind}")
    theta = r.number("rope_theta", k.number("rope_theta", 10000.0))
    rope = Rope(theta, int(head_dim * r.number("partial_rotary_factor", 1.0)))
    if kind == "default":
        return rope
    rope = replace(rope, factor=_positive(r, "factor"))
    if kind == "llama3":
        return replace(
            rope,
            kind=kind,
            original_context=r.integer("original_max_position_embeddings"),
            low_freq_factor=_positive(r, "low_freq_factor"),
            high_freq_factor=_positive(r, "high_freq_factor"),
        )
    if kind == "yarn":
        if not r.flag("truncate", True):
            raise Unsupported(f"{r.where}: truncate = false is not supported")
        attention = scaling.get("attention_factor")
        context = k.integer("max_position_embeddings", 2048)
        return replace(
            rope,
            kind=kind,
            original_context=r.integer("original_max_position_embeddings", context),
            beta_fast=_positive(r, "beta_fast", 32.0),
            beta_slow=_positive(r, "beta_slow", 1.0),
            attention_factor=None if attention is None else _positive(r, "attention_factor"),
        )
    return replace(rope, kind=kind)


def _positive(k: _Keys, key: str, default: float | None = None) -> float:
    value = k.number(key, default)
    if not value > 0:
        raise ModelFileError(f"{k.where}: {key} must be positive, is {value}")
    return value
