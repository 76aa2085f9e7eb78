"""Model configs are read strictly: every broken one is a typed error that names the key, none is a traceback."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from families import llama as llama_kin
from refusals import check_refused
from ridgeline.errors import ModelFileError, RidgelineError, Unsupported
from ridgeline.models.config import ModelConfig, Rope, inv_freq, rope_scale, state_of_layers
from ridgeline.models.gguf import from_gguf
from ridgeline.models.hf import from_hf

LLAMA = tiny.CONFIGS["llama"]
NAN, INF = float("nan"), float("inf")


def llama3(**changes):
    return {"rope_parameters": tiny.changed(tiny.CONFIGS["llama3"]["rope_parameters"], **changes)}


def yarn(**changes):
    return {"rope_scaling": tiny.changed(tiny.CONFIGS["yarn"]["rope_scaling"], **changes)}


BAD_HF = {  # name: (base config, changes, error, words in its message)
    "no architecture": ("llama", {"model_type": ...}, Unsupported, "model_type None"),
    "unknown architecture": ("llama", {"model_type": "mamba"}, Unsupported, "model_type 'mamba'.*qwen3"),
    "architecture is a list": ("llama", {"model_type": ["llama"]}, Unsupported, "model_type"),
    "unknown key": ("llama", {"logit_scale": 0.5}, Unsupported, "logit_scale = 0.5"),
    "quantised by another tool": ("llama", {"quantization_config": {"bits": 4}}, Unsupported, "quantization_config"),
    "interleaved rope": ("llama", {"rope_interleaved": True}, Unsupported, "rope_interleaved"),
    "encoder-decoder": ("llama", {"is_encoder_decoder": True}, Unsupported, "is_encoder_decoder"),
    "bad activation": ("llama", {"hidden_act": "gelu"}, Unsupported, "hidden_act 'gelu'"),
    "no activation": ("llama", {"hidden_act": None}, Unsupported, "hidden_act None"),
    "window of llama": ("llama", {"sliding_window": 32}, Unsupported, "sliding_window"),
    "bias of mistral": ("mistral", {"attention_bias": True}, Unsupported, "attention_bias"),
    "mlp bias of qwen3": ("qwen3", {"mlp_bias": True}, Unsupported, "mlp_bias"),
    "unknown rope": ("llama", {"rope_scaling": {"rope_type": "longrope"}}, Unsupported, "type 'longrope'"),
    "rope type is a number": ("llama", {"rope_scaling": {"type": 3}}, Unsupported, "type 3"),
    "rope is a list": ("llama", {"rope_scaling": [1]}, ModelFileError, "rope_scaling must be an object"),
    "unknown rope key": ("llama3", llama3(short_factor=[1.0]), Unsupported, "short_factor"),
    "rope without factor": ("linear", {"rope_scaling": {"type": "linear"}}, ModelFileError, "factor must be a number"),
    "rope factor 0": ("llama3", llama3(factor=0), ModelFileError, "factor must be positive"),
    "rope factor nan": ("llama3", llama3(factor=NAN), ModelFileError, "factor must be finite"),
    "llama3 bands crossed": ("llama3", llama3(low_freq_factor=4.0), ModelFileError, "low_freq_factor"),
    "llama3 without context": (
        "llama3", llama3(original_max_position_embeddings=...), ModelFileError, "original_max_position_embeddings",
    ),
    "llama3 context 0": ("llama3", llama3(original_max_position_embeddings=0), ModelFileError, "original context"),
    "yarn betas crossed": ("yarn", yarn(beta_fast=0.5), ModelFileError, "beta_slow"),
    "yarn beta 0": ("yarn", yarn(beta_slow=0), ModelFileError, "beta_slow"),
    "yarn mscale": ("yarn", yarn(mscale=0.7), Unsupported, "mscale"),
    "yarn untruncated": ("yarn", yarn(truncate=False), Unsupported, "truncate"),
    "theta 0": ("llama", {"rope_theta": 0}, ModelFileError, "theta"),
    "theta 1": ("llama", {"rope_theta": 1.0}, ModelFileError, "theta"),
    "theta infinite": ("llama", {"rope_theta": INF}, ModelFileError, "rope_theta must be finite"),
    "theta is text": ("llama", {"rope_theta": "1e4"}, ModelFileError, "rope_theta must be a number"),
    "no hidden size": ("llama", {"hidden_size": ...}, ModelFileError, "hidden_size must be an integer, is None"),
    "hidden size is text": ("llama", {"hidden_size": "96"}, ModelFileError, "hidden_size must be an integer"),
    "hidden size is a fraction": ("llama", {"hidden_size": 96.5}, ModelFileError, "hidden_size must be an integer"),
    "hidden size is true": ("llama", {"hidden_size": True}, ModelFileError, "hidden_size must be an integer"),
    "hidden size negative": ("llama", {"hidden_size": -96}, ModelFileError, "num_attention_heads 6"),
    "hidden size enormous": ("llama", {"hidden_size": 10**400}, ModelFileError, "hidden_size must be finite"),
    "layers is a list": ("llama", {"num_hidden_layers": [2]}, ModelFileError, "num_hidden_layers"),
    "too many layers": ("llama", {"num_hidden_layers": 10**9}, ModelFileError, "num_hidden_layers"),
    "no layers": ("llama", {"num_hidden_layers": 0}, ModelFileError, "num_hidden_layers 0"),
    "no heads": ("llama", {"num_attention_heads": 0}, ModelFileError, "num_attention_heads 0"),
    "heads do not divide": ("llama", {"num_attention_heads": 7}, ModelFileError, "hidden_size 96.*attention_heads 7"),
    "kv heads do not divide": ("llama", {"num_key_value_heads": 4}, ModelFileError, "6 heads.*4 KV heads"),
    "kv heads missing": ("qwen2", {"num_key_value_heads": ...}, ModelFileError, "num_key_value_heads"),
    "kv heads 0": ("llama", {"num_key_value_heads": 0}, ModelFileError, "n_kv_heads = 0"),
    "odd head": ("llama", {"head_dim": 15}, ModelFileError, "head_dim 15"),
    "enormous vocabulary": ("llama", {"vocab_size": 1 << 40}, ModelFileError, "vocab = "),
    "eps 0": ("llama", {"rms_norm_eps": 0}, ModelFileError, "norm_eps"),
    "eps nan": ("llama", {"rms_norm_eps": NAN}, ModelFileError, "rms_norm_eps"),
    "tied is text": ("llama", {"tie_word_embeddings": "yes"}, ModelFileError, "tie_word_embeddings must be true"),
    "bias is a number": ("llama", {"attention_bias": 1}, ModelFileError, "attention_bias must be true"),
    "window 0": ("mistral", {"sliding_window": 0}, ModelFileError, "sliding_window must be positive"),
    "window is text": ("mistral", {"sliding_window": "24"}, ModelFileError, "sliding_window must be an integer"),
    "window enormous": ("mistral", {"sliding_window": 1 << 40}, ModelFileError, "window"),
    "too few layer types": ("qwen2w", {"layer_types": ["full_attention"]}, Unsupported, "layer_types must list 4"),
    "unknown layer type": ("qwen2w", {"layer_types": ["chunked"] * 4}, Unsupported, "layer_types must list"),
    "layer types not texts": ("qwen2w", {"layer_types": [{}] * 4}, Unsupported, "layer_types must list"),
    "sliding layers, no window": (
        "qwen2", {"layer_types": ["sliding_attention"] * 2}, ModelFileError, "no sliding_window",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_HF)
def test_bad_hf_config(what):
    check_refused(BAD_HF[what])


@pytest.mark.parametrize("name", llama_kin.CONFIGS)
def test_good_hf_config(name):
    c, data = from_hf(tiny.CONFIGS[name]), tiny.CONFIGS[name]
    assert (c.vocab, c.hidden, c.layers, c.n_heads, c.n_kv_heads) == (
        131, data["hidden_size"], data["num_hidden_layers"], data["num_attention_heads"], 3,
    )  # fmt: skip
    assert c.head_dim == tiny.head_dim(data) and c.tied == data["tie_word_embeddings"]
    assert c.qkv_bias == (name in ("biased", "qwen2", "qwen2w"))
    assert (c.o_bias, c.mlp_bias, c.qk_norm) == (name == "biased", name == "biased", name == "qwen3")


def test_windows():
    assert from_hf(tiny.CONFIGS["mistral"]).windows == (24, 24, 24)
    assert from_hf(tiny.CONFIGS["qwen2"]).windows == ()
    assert from_hf(tiny.CONFIGS["qwen2w"]).windows == (0, 0, 40, 40)
    listed = ["sliding_attention", "full_attention"] * 2
    assert from_hf(tiny.changed(tiny.CONFIGS["qwen2w"], layer_types=listed)).windows == (40, 0, 40, 0)
    assert from_hf(tiny.changed(tiny.CONFIGS["mistral"], sliding_window=None)).windows == ()
    assert from_hf(tiny.changed(tiny.CONFIGS["mistral"], sliding_window=...)).windows == (4096,) * 3


def test_missing_keys_mean_what_they_mean_in_transformers():
    c = from_hf(tiny.changed(LLAMA, num_key_value_heads=..., rope_theta=..., tie_word_embeddings=...))
    assert (c.n_kv_heads, c.rope.theta, c.tied) == (6, 10000.0, False)
    assert from_hf(tiny.changed(tiny.CONFIGS["qwen3"], head_dim=...)).head_dim == 128
    assert from_hf(tiny.changed(LLAMA, norm_bias=False, foo=None, bar=[], head_dim=None)) == from_hf(LLAMA)
    biased = from_hf(tiny.changed(tiny.CONFIGS["qwen3"], attention_bias=True))
    assert biased.qkv_bias and biased.o_bias


def test_both_rope_spellings():
    old = tiny.changed(LLAMA, rope_theta=5e5, rope_scaling=tiny.CONFIGS["yarn"]["rope_scaling"])
    new = tiny.changed(
        LLAMA,
        rope_theta=...,
        rope_scaling=...,
        rope_parameters={"rope_theta": 5e5, **tiny.CONFIGS["yarn"]["rope_scaling"]},
    )
    assert from_hf(old) == from_hf(new)


values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4),
    st.sampled_from([0, 1, 2, 3, 6, 96, 131, 10**400, NAN, INF, "llama", "yarn", "linear", "full_attention"]),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


KEYS = [*LLAMA, "head_dim", "layer_types", "sliding_window", "unheard_of"]
ROPE_KEYS = (
    "rope_type factor beta_fast beta_slow attention_factor rope_theta partial_rotary_factor low_freq_factor "
    "original_max_position_embeddings"
).split()


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(list(tiny.CONFIGS)),
    st.dictionaries(st.sampled_from(KEYS), values, max_size=3),
    st.dictionaries(st.sampled_from(ROPE_KEYS), values, max_size=3),
)
def test_any_hf_config_is_read_or_refused(name, changes, rope):
    data = tiny.changed(tiny.CONFIGS[name], **changes)
    for key in ("rope_parameters", "rope_scaling"):
        if isinstance(data.get(key), dict):
            data[key] = {**data[key], **rope}
    try:
        c = from_hf(json.loads(json.dumps(data)))
    except RidgelineError:
        return
    for one in filter(None, (c.rope, c.local_rope)):
        assert all(math.isfinite(f) for f in inv_freq(one)) and math.isfinite(rope_scale(one))
    assert len(state_of_layers(c)) == c.layers


# --- GGUF


def gguf(metadata, tensors=(), factors=()):
    return from_gguf(metadata, tensors, lambda name: list(factors), "m.gguf")


def metadata(name="llama", **changes):
    base = tiny.gguf_metadata(tiny.CONFIGS[name])
    arch = base["general.architecture"]
    return tiny.changed(base, **{k.replace("__", f"{arch}.", 1).replace("_DOT_", "."): v for k, v in changes.items()})


BAD_GGUF = {
    "no architecture": ({"general.architecture": ...}, Unsupported, "architecture None"),
    "unknown architecture": ({"general.architecture": "mamba"}, Unsupported, "architecture 'mamba'"),
    "architecture is an array": ({"general.architecture": np.zeros(3)}, Unsupported, "architecture"),
    "architecture is a list": ({"general.architecture": ["llama"]}, Unsupported, "architecture"),
    "unknown key": ({"llama.expert_count": 8}, Unsupported, r"llama\.expert_count = 8"),
    "unknown array": ({"llama.rope.dimension_sections": np.array([1, 2])}, Unsupported, "rope.dimension_sections"),
    "unknown empty array": ({"llama.foo": np.zeros(0)}, Unsupported, r"llama\.foo"),
    "rope factor without type": ({"llama.rope.scaling.factor": 4.0}, Unsupported, "without rope.scaling.type"),
    "unknown rope": ({"llama.rope.scaling.type": "longrope"}, Unsupported, "rope.scaling.type 'longrope'"),
    "rope type is a number": ({"llama.rope.scaling.type": 1}, Unsupported, "rope.scaling.type 1"),
    "rope without factor": ({"llama.rope.scaling.type": "linear"}, ModelFileError, "rope.scaling.factor"),
    "rope factor 0": (
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 0.0}, ModelFileError, "rope factor",
    ),
    "rope factor nan": (
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": NAN}, ModelFileError, "rope.scaling.factor",
    ),
    "yarn context 0": (
        {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0,
         "llama.rope.scaling.original_context_length": 0}, ModelFileError, "original context",
    ),
    "no hidden size": ({"llama.embedding_length": ...}, ModelFileError, "embedding_length must be an integer, is None"),
    "hidden size is text": ({"llama.embedding_length": "96"}, ModelFileError, "embedding_length must be an integer"),
    "hidden size is a fraction": ({"llama.embedding_length": 96.0}, ModelFileError, "embedding_length"),
    "hidden size is true": ({"llama.embedding_length": True}, ModelFileError, "embedding_length"),
    "heads per layer": ({"llama.attention.head_count": np.array([6, 6])}, ModelFileError, "attention.head_count"),
    "kv heads per layer": ({"llama.attention.head_count_kv": np.array([3])}, ModelFileError, "head_count_kv"),
    "no heads": ({"llama.attention.head_count": 0}, ModelFileError, "attention.head_count 0"),
    "heads do not divide": (
        {"llama.attention.head_count": 7, "llama.attention.key_length": ...}, ModelFileError, "head_count 7",
    ),
    "kv heads do not divide": ({"llama.attention.head_count_kv": 4}, ModelFileError, "4 KV heads"),
    "value heads of another size": ({"llama.attention.value_length": 8}, Unsupported, "value_length"),
    "odd head": (
        {"llama.attention.key_length": 15, "llama.attention.value_length": 15, "llama.rope.dimension_count": ...},
        ModelFileError, "head_dim 15",
    ),
    "rotary dims over head": ({"llama.rope.dimension_count": 32}, ModelFileError, "rotary dims 32"),
    "no layers": ({"llama.block_count": 0}, ModelFileError, "layers = 0"),
    "too many layers": ({"llama.block_count": 1 << 30}, ModelFileError, "layers"),
    "no vocabulary": ({"llama.vocab_size": ...}, ModelFileError, "vocab_size"),
    "vocabulary is not a list": (
        {"llama.vocab_size": ..., "tokenizer.ggml.tokens": 131}, ModelFileError, "vocab_size",
    ),
    "eps nan": ({"llama.attention.layer_norm_rms_epsilon": NAN}, ModelFileError, "layer_norm_rms_epsilon"),
    "eps 0": ({"llama.attention.layer_norm_rms_epsilon": 0.0}, ModelFileError, "norm_eps"),
    "theta infinite": ({"llama.rope.freq_base": INF}, ModelFileError, "rope.freq_base must be finite"),
    "window enormous": ({"llama.attention.sliding_window": 1 << 31}, ModelFileError, "window"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_GGUF)
def test_bad_gguf_metadata(what):
    changes, error, words = BAD_GGUF[what]
    with pytest.raises(error, match=words) as raised:
        gguf(tiny.changed(metadata(), **changes))
    assert type(raised.value) is error


@pytest.mark.parametrize("factors", [[1.0] * 7, [1.0] * 7 + [0.0], [1.0] * 7 + [NAN], [1.0] * 7 + [INF]])
def test_bad_rope_factors(factors):
    with pytest.raises(ModelFileError, match="rope_freqs.weight"):
        gguf(metadata(), ["rope_freqs.weight", "output.weight"], factors)


@pytest.mark.parametrize("name", tiny.GGUF_CONFIGS)
def test_gguf_says_the_same_as_hf(name):
    c = tiny.CONFIGS[name]
    tensors = tiny.gguf_tensors(c, tiny.weights(c))
    got = from_gguf(tiny.gguf_metadata(c), tensors, lambda n: tensors[n].tolist(), "m.gguf")
    expected = from_hf(c)
    for one, other in ((got.rope, expected.rope), (got.local_rope, expected.local_rope)):
        assert (one is None) == (other is None)
        assert one is None or np.allclose(inv_freq(one), inv_freq(other), rtol=1e-6)
    family = "llama" if expected.family == "mistral" else expected.family
    assert dataclasses.replace(got, rope=expected.rope) == dataclasses.replace(expected, family=family)


def test_gguf_vocabulary_from_its_tokens():
    assert gguf(metadata(__vocab_size=..., **{"tokenizer.ggml.tokens": ["a"] * 77})).vocab == 77


# --- what is derived


def test_layers_fall_into_groups_of_equal_size():
    base = from_hf(tiny.CONFIGS["llama"])

    def groups(*windows):
        c = dataclasses.replace(base, layers=len(windows), windows=windows)
        return [(s.name, s.layers, s.window, i) for s, i in state_of_layers(c)]

    assert groups(0, 0, 40, 40) == [("kv", 2, 0, 0), ("kv", 2, 0, 1), ("kv40", 2, 40, 0), ("kv40", 2, 40, 1)]
    assert groups(8, 0, 8, 8) == [("kv8_0", 1, 8, 0), ("kv", 1, 0, 0), ("kv8_1", 1, 8, 0), ("kv8_2", 1, 8, 0)]
    names = [name for name, *_ in groups(0, 8, 8, 0, 8, 8)]
    assert names == ["kv", "kv8_0", "kv8_0", "kv", "kv8_1", "kv8_1"]
    assert {
        s.page_bytes for s, _ in state_of_layers(dataclasses.replace(base, layers=6, windows=(0, 8, 8, 0, 8, 8)))
    } == {2 * 64 * 2 * 3 * 16 * 4}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0, 8, 24]), min_size=1, max_size=12))
def test_each_layer_has_its_own_place(windows):
    base = from_hf(tiny.CONFIGS["llama"])
    placed = state_of_layers(dataclasses.replace(base, layers=len(windows), windows=tuple(windows)))
    assert len({(s.name, i) for s, i in placed}) == len(windows)
    assert [s.window for s, _ in placed] == windows and len({s.layers for s, _ in placed}) == 1
    assert all(0 <= i < s.layers for s, i in placed)


def test_rope_scalings_bound_the_frequencies():
    plain = inv_freq(Rope(1e4, 64))
    assert plain[0] == 1 and np.isclose(plain[-1], 1e4 ** -(62 / 64))
    for rope in (
        Rope(1e4, 64, "linear", 4.0),
        Rope(1e4, 64, "llama3", 4.0, 128),
        Rope(1e4, 64, "yarn", 4.0, 128),
        Rope(1e4, 64, factors=(4.0,) * 32),
    ):
        scaled = inv_freq(rope)
        assert all(p / 4 * 0.999999 <= f <= p for f, p in zip(scaled, plain, strict=True))
        assert np.isclose(scaled[-1], plain[-1] / 4)
    assert rope_scale(Rope(1e4, 64, "yarn", 4.0, 128)) == pytest.approx(0.1 * math.log(4) + 1)
    assert rope_scale(Rope(1e4, 64, "yarn", 4.0, 128, attention_factor=1.5)) == 1.5
    assert rope_scale(Rope(1e4, 64, "linear", 4.0)) == 1


@pytest.mark.parametrize("field", ["vocab", "hidden", "layers", "n_heads", "n_kv_heads", "head_dim", "ffn", "context"])
@pytest.mark.parametrize("value", [0, -1, (1 << 24) + 1])
def test_sizes_are_bounded(field, value):
    with pytest.raises(ModelFileError, match=f"{field} = {value}"):
        dataclasses.replace(from_hf(LLAMA), **{field: value})


def test_a_config_is_a_value():
    assert from_hf(LLAMA) == from_hf(dict(LLAMA)) and isinstance(from_hf(LLAMA), ModelConfig)
    assert hash(from_hf(LLAMA)) == hash(from_hf(LLAMA))
