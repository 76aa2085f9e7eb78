"""Configs of GPT-2, GPTBigCode, StarCoder2 and Phi-3: what is refused, what missing keys mean, how files may vary."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import tiny
from refusals import check_refused
from ridgeline.backends.reference import Reference
from ridgeline.errors import ModelFileError, Unsupported
from ridgeline.models.config import inv_freq, rope_scale
from ridgeline.models.gguf import from_gguf
from ridgeline.models.hf import from_hf
from ridgeline.weights.load import open_checkpoint


def rope(name="phi3long", **changes):
    return {"rope_scaling": tiny.changed(tiny.CONFIGS[name]["rope_scaling"], **changes)}


BAD_HF = {  # name: (base config, changes, error, words in its message)
    "unscaled attention": ("gpt2", {"scale_attn_weights": False}, Unsupported, "scale_attn_weights = False"),
    "scores by layer": (
        "gpt2", {"scale_attn_by_inverse_layer_idx": True}, Unsupported, "scale_attn_by_inverse_layer_idx = True",
    ),
    "cross attention": ("gpt2", {"add_cross_attention": True}, Unsupported, "add_cross_attention = True"),
    "relu of gpt2": ("gpt2", {"activation_function": "relu"}, Unsupported, "activation_function 'relu'.*gelu_new"),
    "no activation": ("gpt2", {"activation_function": None}, Unsupported, "activation_function None"),
    "heads do not divide": ("gpt2", {"n_head": 7}, ModelFileError, "n_embd 240 is not a multiple of n_head 7"),
    "no heads": ("gpt2", {"n_head": 0}, ModelFileError, "n_head 0"),
    "no hidden size": ("gpt2", {"n_embd": ...}, ModelFileError, "n_embd must be an integer"),
    "too many layers": ("gpt2", {"n_layer": 1 << 20}, ModelFileError, "n_layer 1048576"),
    "no ffn": ("gpt2", {"n_inner": 0}, ModelFileError, "ffn = 0"),
    "no positions": ("gpt2", {"n_positions": 0}, ModelFileError, "context = 0"),
    "eps 0": ("gpt2", {"layer_norm_epsilon": 0}, ModelFileError, "norm_eps"),
    "multi-query gpt2": ("gpt2", {"multi_query": True}, Unsupported, "multi_query"),
    "rope of gpt2": ("gpt2", {"rope_theta": 1e4}, Unsupported, "rope_theta"),
    "multi_query is a number": ("bigcode", {"multi_query": 1}, ModelFileError, "multi_query must be true or false"),
    "silu of bigcode": ("bigcode", {"activation_function": "silu"}, Unsupported, "activation_function 'silu'"),
    "rms norm": ("starcoder2", {"norm_type": "rms_norm"}, Unsupported, "norm_type = 'rms_norm'"),
    "gated mlp": ("starcoder2", {"mlp_type": "gated"}, Unsupported, "mlp_type = 'gated'"),
    "silu of starcoder2": ("starcoder2", {"hidden_act": "silu"}, Unsupported, "hidden_act 'silu'"),
    "bias is a number": ("starcoder2", {"use_bias": 1}, ModelFileError, "use_bias must be true or false"),
    "starcoder2 window 0": ("starcoder2", {"sliding_window": 0}, ModelFileError, "sliding_window must be positive"),
    "starcoder2 longrope": ("starcoder2", rope(), Unsupported, "type 'longrope'"),
    "bias of phi3": ("phi3", {"attention_bias": True}, Unsupported, "attention_bias = True"),
    "biased head": ("phi3", {"lm_head_bias": True}, Unsupported, "lm_head_bias = True"),
    "window negative": ("phi3", {"sliding_window": -1}, ModelFileError, "sliding_window must be positive"),
    "yarn of phi3": ("phi3", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, Unsupported, "type 'yarn'"),
    "no long factors": ("phi3long", rope(long_factor=...), ModelFileError, "long_factor must hold 8 positive factors"),
    "too few factors": ("phi3long", rope(short_factor=[1.0] * 7), ModelFileError, "short_factor must hold 8"),
    "a factor is 0": ("phi3long", rope(long_factor=[1.0] * 7 + [0]), ModelFileError, "long_factor must hold 8"),
    "a factor is true": ("phi3long", rope(long_factor=[1.0] * 7 + [True]), ModelFileError, "long_factor must hold 8"),
    "a factor is nan": ("phi3long", rope(long_factor=[1.0] * 7 + [float("nan")]), ModelFileError, "long_factor"),
    "a factor is enormous": ("phi3long", rope(long_factor=[10**400] * 8), ModelFileError, "long_factor"),
    "factors are text": ("phi3long", rope(long_factor="11111111"), ModelFileError, "long_factor"),
    "temperature 0": ("phi3long", rope(attention_factor=0), ModelFileError, "attention_factor must be positive"),
    "factor 0": ("phi3long", rope(factor=0), ModelFileError, "factor must be positive"),
    "no temperature from 1": ("phi3long", rope(attention_factor=...), ModelFileError, "must be over 1, is 1"),
    "original context 0": (
        "phi3long", {"original_max_position_embeddings": 0}, ModelFileError, "original_max_position_embeddings",
    ),
    "two original contexts": (
        "phi3long", rope(original_max_position_embeddings=64), Unsupported, "original_max_position_embeddings = 64",
    ),
    "context 0": ("phi3long", {"max_position_embeddings": 0}, ModelFileError, "factor must be positive"),
    "unknown longrope key": ("phi3long", rope(short_mscale=1.2), Unsupported, "short_mscale"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_HF)
def test_bad_hf_config(what):
    check_refused(BAD_HF[what])


def gguf(name, tensors=(), factors=(), **changes):
    metadata = tiny.gguf_metadata(tiny.CONFIGS[name])
    arch = metadata["general.architecture"]
    changed = tiny.changed(metadata, **{f"{arch}.{k.replace('__', '.')}": v for k, v in changes.items()})
    return from_gguf(changed, tensors, lambda name: list(factors), "m.gguf")


LONG = ("rope_factors_long.weight", "rope_factors_short.weight")


def test_bad_gguf_metadata():
    with pytest.raises(Unsupported, match="head_count_kv = 3 is not supported; 1 is"):
        gguf("bigcode", attention__head_count_kv=3)
    with pytest.raises(Unsupported, match="head_count_kv = 3"):
        gguf("bigcode", attention__head_count_kv=...)
    with pytest.raises(ModelFileError, match="layer_norm_epsilon"):
        gguf("gpt2", attention__layer_norm_epsilon=...)
    with pytest.raises(ModelFileError, match="window"):
        gguf("starcoder2", attention__sliding_window=1 << 31)
    with pytest.raises(ModelFileError, match=r"attn_factor must be a number, is None"):
        gguf("phi3long", LONG, [1.0] * 8, rope__scaling__attn_factor=...)
    with pytest.raises(ModelFileError, match=r"rope_factors_long.weight must hold 8 positive factors"):
        gguf("phi3long", LONG, [1.0] * 7)
    with pytest.raises(Unsupported, match=r"rope.scaling.type 'yarn'"):
        gguf("phi3long", LONG, [1.0] * 8, rope__scaling__type="yarn")
    with pytest.raises(Unsupported, match=r"rope.scaling.attn_factor = 1.2"):
        gguf("phi3", rope__scaling__attn_factor=1.2)


def test_a_long_phi3_without_its_factors_is_refused(tmp_path):
    pytest.importorskip("gguf")
    c = tiny.CONFIGS["phi3long"]
    tensors = {k: x for k, x in tiny.gguf_tensors(c, tiny.weights(c)).items() if k not in LONG}
    path = tiny.write_gguf(tmp_path / "m.gguf", tiny.gguf_metadata(c), tensors)
    with pytest.raises(ModelFileError, match=r"rope_factors_long.weight"):
        open_checkpoint(path)


def test_missing_keys_mean_what_they_mean_in_transformers():
    sparse = from_hf({"model_type": "gpt2", "vocab_size": 131, "n_embd": 240, "n_layer": 2, "n_head": 3})
    assert sparse == dataclasses.replace(from_hf(tiny.CONFIGS["gpt2"]), context=1024)
    sparse = from_hf({"model_type": "gpt_bigcode", "vocab_size": 131, "n_embd": 240, "n_layer": 2, "n_head": 3})
    assert (sparse.n_kv_heads, sparse.ffn, sparse.activation, sparse.tied) == (1, 960, "gelu_tanh", True)
    left_out = ("use_bias", "tie_word_embeddings", "norm_epsilon", "hidden_act", "sliding_window", "rope_theta")
    sparse = from_hf(tiny.changed(tiny.CONFIGS["starcoder2"], **dict.fromkeys(left_out, ...)))
    assert sparse.qkv_bias and sparse.o_bias and sparse.mlp_bias and sparse.tied and sparse.norm_eps == 1e-5
    assert (sparse.activation, sparse.windows, sparse.rope.theta) == ("gelu_tanh", (), 10000.0)
    left_out = ("num_key_value_heads", "sliding_window", "rms_norm_eps", "tie_word_embeddings", "rope_theta")
    sparse = from_hf(tiny.changed(tiny.CONFIGS["phi3"], **dict.fromkeys(left_out, ...)))
    assert (sparse.n_kv_heads, sparse.windows, sparse.tied, sparse.rope.theta) == (6, (), False, 10000.0)


def test_keys_of_the_published_configs_are_understood():
    bigcode = tiny.changed(
        tiny.CONFIGS["bigcode"], inference_runner=0, max_batch_size=None, pad_key_length=True, summary_use_proj=True,
        attention_softmax_in_fp32=True, scale_attention_softmax_in_fp32=True, validate_runner_input=True,
    )  # fmt: skip
    assert from_hf(bigcode) == from_hf(tiny.CONFIGS["bigcode"])
    starcoder2 = tiny.changed(
        tiny.CONFIGS["starcoder2"], rms_norm_eps=1e-5, residual_dropout=0.1, embedding_dropout=0.1
    )
    assert from_hf(starcoder2) == from_hf(tiny.CONFIGS["starcoder2"])
    phi4 = tiny.changed(tiny.CONFIGS["phi3"], full_attn_mod=1, interpolate_factor=1, lm_head_bias=False)
    assert from_hf(phi4) == from_hf(tiny.CONFIGS["phi3"])


def test_files_that_name_no_window_have_the_released_one():
    assert gguf("starcoder2", attention__sliding_window=...).windows == (4096, 4096)
    assert gguf("starcoder2", attention__sliding_window=0).windows == ()
    first = {"attention__sliding_window": ..., "rope__scaling__original_context_length": ...}
    assert gguf("phi3", context_length=4096, **first).windows == (2047, 2047)
    assert gguf("phi3", context_length=16384, **first).windows == ()


# --- LongRoPE


def test_longrope_factors_follow_the_declared_context():
    c = tiny.CONFIGS["phi3short"]
    long, short = (np.array(c["rope_scaling"][f"{x}_factor"]) for x in ("long", "short"))
    plain = 1e4 ** -(np.arange(0, 24, 2) / 24)
    assert np.allclose(inv_freq(from_hf(c).rope), plain / short)
    longer = from_hf({**c, "max_position_embeddings": 513})
    assert np.allclose(inv_freq(longer.rope), plain / long)
    assert rope_scale(from_hf(c).rope) == 1


def test_longrope_of_phi35_is_that_of_transformers():
    """The published shape: 4k texts stretched to 128k, temperature from the two contexts."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    long, short = np.linspace(1.08, 64.9, 48).round(4).tolist(), np.linspace(1, 3.25, 48).round(4).tolist()
    shape = {
        "vocab_size": 131, "hidden_size": 3072, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 32, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
        "rope_theta": 10000.0, "rope_scaling": {"type": "longrope", "long_factor": long, "short_factor": short},
    }  # fmt: skip
    theirs = transformers.Phi3Config(**json.loads(json.dumps(shape)))
    freqs, scale = ROPE_INIT_FUNCTIONS["longrope"](theirs, "cpu", seq_len=4097)
    ours = from_hf({"model_type": "phi3", **shape}).rope
    assert np.allclose(inv_freq(ours), freqs.numpy(), rtol=1e-6)
    assert rope_scale(ours) == pytest.approx(scale) and scale > 1.1
    shape["rope_scaling"]["type"] = "su"  # what the first files say
    assert from_hf({"model_type": "phi3", **shape}).rope == ours


# --- how files of one model vary


def logits(path, backend=None):
    step = tiny.compile_model(open_checkpoint(path), backend or Reference())
    return tiny.run_step(step, step.layout, tiny.prompt(20))


@pytest.mark.parametrize("name", ["gpt2", "gpt2u", "bigcode"])
def test_files_of_the_bare_model_and_with_causal_masks(tmp_path, name):
    c = tiny.CONFIGS[name]
    tensors = tiny.weights(c)
    bare = {k.removeprefix("transformer."): x for k, x in tensors.items()}
    for i in range(c["n_layer"]):
        bare[f"h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 512, 512), np.float32))
        bare[f"h.{i}.attn.masked_bias"] = np.float32(-1e4).reshape(())
    if c["tie_word_embeddings"]:
        bare["lm_head.weight"] = bare["wte.weight"]
    expected = logits(tiny.write_hf(tmp_path / "whole", c, tensors))
    assert np.array_equal(logits(tiny.write_hf(tmp_path / "bare", c, bare)), expected)


def test_a_gpt2_file_may_hold_its_tied_head_too(tmp_path):
    pytest.importorskip("gguf")
    c = tiny.CONFIGS["gpt2"]
    tensors = tiny.gguf_tensors(c, tiny.weights(c))
    paths = [
        tiny.write_gguf(tmp_path / f"{len(more)}.gguf", tiny.gguf_metadata(c), {**tensors, **more})
        for more in ({}, {"output.weight": tensors["token_embd.weight"]})
    ]
    assert np.array_equal(*map(logits, paths))


@pytest.mark.parametrize("format", ["F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize(("name", "hidden"), [("gpt2", {"n_embd": 96, "n_head": 6}), ("phi3long", {})])
def test_rows_of_a_packed_fused_tensor(tmp_path, backend, name, hidden, format):
    """A packed file gives the logits of one that holds what the gguf package unpacks from it."""
    gguf = pytest.importorskip("gguf")
    c, kind = tiny.changed(tiny.CONFIGS[name], **hidden), gguf.GGMLQuantizationType[format]
    exact = tiny.gguf_tensors(c, tiny.weights(c))
    whole = {k: x for k, x in exact.items() if x.ndim == 1 or x.shape[-1] % 32 or "position" in k}
    unpacked = {
        k: gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind).astype(np.float32)
        for k, x in exact.items()
        if k not in whole
    }
    packed = tiny.write_gguf(tmp_path / "q.gguf", tiny.gguf_metadata(c), exact, format, {"position": "F32"})
    paths = packed, tiny.write_gguf(tmp_path / "f.gguf", tiny.gguf_metadata(c), {**exact, **unpacked})
    got, expected = (logits(path, backend) for path in paths)
    assert np.abs(got - expected).max() <= 1e-4


@pytest.mark.parametrize("missing", ["transformer.h.0.attn.c_attn.bias", "transformer.wpe.weight"])
def test_a_real_bias_is_no_mask(tmp_path, missing):
    c = tiny.CONFIGS["gpt2"]
    tensors = {k: x for k, x in tiny.weights(c).items() if k != missing}
    with pytest.raises(ModelFileError, match=missing):
        logits(tiny.write_hf(tmp_path / "m", c, tensors))
    extra = {**tiny.weights(c), "transformer.h.0.attn.q_attn.bias": np.zeros(240, np.float32)}
    with pytest.raises(Unsupported, match="q_attn.bias"):
        logits(tiny.write_hf(tmp_path / "x", c, extra))
