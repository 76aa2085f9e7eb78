"""Strict reading of Hugging Face config.json into ModelConfig."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ridgeline.errors import ModelFileError, Unsupported
from ridgeline.models.config import ModelConfig, Rope

# Keys that do not change what a forward pass computes (or are read by the tokenizer and generation settings).
_IGNORED = frozenset(
    "_name_or_path architectures auto_map bos_token_id eos_token_id pad_token_id unk_token_id torch_dtype dtype "
    "transformers_version transformers.js_config use_cache initializer_range is_llama_config rope_interleaved "
    "attention_dropout pretraining_tp model_type quantization_config_path output_attentions output_hidden_states "
    "return_dict id2label label2id chunk_size_feed_forward problem_type max_window_layers use_sliding_window "
    "layer_types is_encoder_decoder embd_pdrop hidden_dropout resid_pdrop bad_words_ids begin_suppress_tokens "
    "task_specific_params tokenizer_class prefix decoder_start_token_id".split()
)
_READ = frozenset(
    "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim intermediate_size "
    "rms_norm_eps rope_theta rope_scaling rope_parameters max_position_embeddings tie_word_embeddings hidden_act "
    "attention_bias mlp_bias sliding_window".split()
)
_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_MAX_CONTEXT = 1 << 24


class _Keys:
    """Typed access to a JSON object; every error names file and key."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data, self.where = data, where

    def number(self, key: str, default: float | None = None) -> float:
        value = self.data.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ModelFileError(f"{self.where}: {key} must be a number, is {value!r}")
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
    if family not in _FAMILIES:
        raise Unsupported(f"{where}: model_type {family!r} is not supported; supported: {', '.join(_FAMILIES)}")
    unknown = [k for k, v in data.items() if v and k not in _READ and k not in _IGNORED]
    if unknown:
        raise Unsupported(f"{where}: key {unknown[0]!r} = {data[unknown[0]]!r} is not understood for {family}")
    k = _Keys(data, where)
    if data.get("hidden_act", "silu") != "silu":
        raise Unsupported(f"{where}: hidden_act {data['hidden_act']!r} is not supported; supported: silu")
    hidden, heads = k.integer("hidden_size"), k.integer("num_attention_heads")
    layers = k.integer("num_hidden_layers")
    if not 0 < heads <= hidden or not 0 < layers <= 1000:
        raise ModelFileError(f"{where}: num_attention_heads {heads}, num_hidden_layers {layers} are out of range")
    head_dim = k.integer("head_dim", hidden // heads)
    return ModelConfig(
        family=family,
        vocab=k.integer("vocab_size"),
        hidden=hidden,
        layers=layers,
        n_heads=heads,
        n_kv_heads=k.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        ffn=k.integer("intermediate_size"),
        norm_eps=k.number("rms_norm_eps", 1e-6),
        rope=_rope(k, head_dim),
        context=k.integer("max_position_embeddings", 2048),
        tied=k.flag("tie_word_embeddings", False),
        qkv_bias=k.flag("attention_bias", family == "qwen2"),
        o_bias=k.flag("attention_bias", False) and family == "llama",
        mlp_bias=k.flag("mlp_bias", False),
        qk_norm=family == "qwen3",
        windows=_windows(k, family, layers),
    )


def _windows(k: _Keys, family: str, layers: int) -> tuple[int, ...]:
    """Mistral: one window for all layers. Qwen: only if use_sliding_window, from layer max_window_layers on."""
    window = k.data.get("sliding_window")
    if window is None or (family != "mistral" and not k.flag("use_sliding_window", False)):
        return ()
    if family == "llama":
        raise Unsupported(f"{k.where}: sliding_window is not understood for llama")
    window = k.integer("sliding_window")
    if window <= 0:
        raise ModelFileError(f"{k.where}: sliding_window must be positive, is {window}")
    types = k.data.get("layer_types")
    if types is not None:
        known = {"full_attention": 0, "sliding_attention": window}
        if not isinstance(types, list) or len(types) != layers or any(t not in known for t in types):
            raise Unsupported(f"{k.where}: layer_types must list {layers} of {', '.join(known)}")
        return tuple(known[t] for t in types)
    first = k.integer("max_window_layers", 0) if family != "mistral" else 0
    return tuple(window if i >= first else 0 for i in range(layers))


def _rope(k: _Keys, head_dim: int) -> Rope:
    """Both spellings: rope_theta + rope_scaling, and rope_parameters."""
    scaling = k.data.get("rope_parameters") or k.data.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise ModelFileError(f"{k.where}: rope_scaling must be an object, is {scaling!r}")
    r = _Keys(scaling, f"{k.where}: rope_scaling")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    theta = r.number("rope_theta", k.number("rope_theta", 10000.0))
    partial = r.number("partial_rotary_factor", 1.0)
    common = {"theta": theta, "dims": int(head_dim * partial), "kind": kind}
    context = k.integer("max_position_embeddings", 2048)
    match kind:
        case "default":
            return Rope(theta, int(head_dim * partial))
        case "linear":
            return Rope(**common, factor=_positive(r, "factor"))
        case "llama3":
            return Rope(
                **common,
                factor=_positive(r, "factor"),
                original_context=r.integer("original_max_position_embeddings"),
                low_freq_factor=r.number("low_freq_factor"),
                high_freq_factor=r.number("high_freq_factor"),
            )
        case "yarn":
            refused = [key for key in ("mscale", "mscale_all_dim", "truncate") if scaling.get(key)]
            if refused:
                raise Unsupported(f"{r.where}: {refused[0]} is not supported")
            attention = scaling.get("attention_factor")
            return Rope(
                **common,
                factor=_positive(r, "factor"),
                original_context=r.integer("original_max_position_embeddings", context),
                beta_fast=r.number("beta_fast", 32.0),
                beta_slow=r.number("beta_slow", 1.0),
                attention_factor=None if attention is None else r.number("attention_factor"),
            )
        case _:
            raise Unsupported(
                f"{r.where}: rope_type {kind!r} is not supported; supported: default, linear, llama3, yarn"
            )


def _positive(k: _Keys, key: str) -> float:
    value = k.number(key)
    if not value > 0:
        raise ModelFileError(f"{k.where}: {key} must be positive, is {value}")
    return value
