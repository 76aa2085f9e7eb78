"""GPT-NeoX, Falcon and BLOOM: what their configs mean, which are refused, and files that spell things as of old."""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from refusals import check_refused
from ridgeline.backends.reference import Reference
from ridgeline.errors import ModelFileError, Unsupported
from ridgeline.models.config import alibi_slopes
from ridgeline.models.gguf import from_gguf
from ridgeline.models.hf import from_hf
from ridgeline.weights.load import open_checkpoint

NAMES = ("pythia", "neox", "falcon7", "falcon40", "falcon11", "falconrw", "bloom", "bloom80")

BAD = {  # name: (base config, changes, error, words in its message)
    "neox: unknown activation": ("pythia", {"hidden_act": "relu"}, Unsupported, "hidden_act 'relu'.*gelu_new"),
    "neox: heads do not divide": ("pythia", {"num_attention_heads": 7}, ModelFileError, "240.*attention_heads 7"),
    "neox: unknown key": ("pythia", {"rotary_emb_scale": 2}, Unsupported, "rotary_emb_scale"),
    "neox: parallel is a number": ("pythia", {"use_parallel_residual": 1}, ModelFileError, "use_parallel_residual"),
    "neox: no rotary part": ("pythia", {"rotary_pct": 0}, ModelFileError, "partial_rotary_factor"),
    "neox: over a head": ("pythia", {"rotary_pct": 1.5}, ModelFileError, "partial_rotary_factor"),
    "neox: odd rotary part": ("pythia", {"rotary_pct": 0.2626}, ModelFileError, "rotary dims 21"),
    "neox: base is text": ("pythia", {"rotary_emb_base": "1e4"}, ModelFileError, "rotary_emb_base must be a number"),
    "neox: no width": ("pythia", {"intermediate_size": ...}, ModelFileError, "intermediate_size"),
    "falcon: residual of the norm": (
        "falcon7", {"apply_residual_connection_post_layernorm": True}, Unsupported, "post_layernorm",
    ),
    "falcon: new and sequential": ("falcon40", {"parallel_attn": False}, Unsupported, "parallel_attn"),
    "falcon: two norms of old": ("falcon7", {"num_ln_in_parallel_attn": 2}, Unsupported, "num_ln_in_parallel_attn"),
    "falcon: three norms": ("falcon40", {"num_ln_in_parallel_attn": 3}, Unsupported, "num_ln_in_parallel_attn"),
    "falcon: kv heads do not divide": ("falcon40", {"num_kv_heads": 4}, ModelFileError, "6 heads.*4 KV heads"),
    "falcon: kv heads of old": ("falconrw", {"num_kv_heads": 2}, Unsupported, "num_kv_heads = 2"),
    "falcon: unknown activation": ("falcon7", {"activation": "silu"}, Unsupported, "activation 'silu'"),
    "falcon: heads do not divide": ("falcon7", {"num_attention_heads": 7}, ModelFileError, "attention_heads 7"),
    "falcon: alibi is text": ("falcon7", {"alibi": "no"}, ModelFileError, "alibi must be true"),
    "falcon: free head size": ("falconrw", {"head_dim": 0}, Unsupported, "head_dim = 0.*24 is"),
    "falcon: two sizes": ("falcon7", {"n_embed": 96}, ModelFileError, "n_embed = 96, but hidden_size = 240"),
    "bloom: residual of the norm": (
        "bloom", {"apply_residual_connection_post_layernorm": True}, Unsupported, "post_layernorm",
    ),
    "bloom: other width": ("bloom", {"n_inner": 100}, Unsupported, "n_inner = 100.*384 is"),
    "bloom: heads do not divide": ("bloom", {"n_head": 7}, ModelFileError, "n_head 7"),
    "bloom: no heads": ("bloom", {"n_head": 0}, ModelFileError, "n_head 0"),
    "bloom: layers is text": ("bloom", {"n_layer": "3"}, ModelFileError, "n_layer must be an integer"),
    "bloom: rope": ("bloom", {"rope_theta": 1e4}, Unsupported, "rope_theta"),
    "bloom: two sizes": ("bloom80", {"hidden_size": 96}, ModelFileError, "n_embed = 240, but hidden_size = 96"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_config(what):
    check_refused(BAD[what])


def test_what_configs_mean():
    c = {name: from_hf(tiny.CONFIGS[name]) for name in NAMES}
    assert [c[n].n_kv_heads for n in NAMES] == [3, 6, 1, 3, 3, 4, 6, 3]
    assert [c[n].residual for n in NAMES] == ["parallel", "sequential"] + ["parallel"] * 3 + ["sequential"] * 3
    assert [n for n in NAMES if c[n].shared_norm] == ["falcon7", "falcon11"]
    assert [n for n in NAMES if c[n].rope is None] == [n for n in NAMES if c[n].alibi] == [*NAMES[5:]]
    assert c["pythia"].rope.dims == 20 and c["neox"].rope.dims == 8 and c["neox"].rope.factor == 2.5
    assert c["falconrw"].alibi == 24**-0.5 and c["bloom"].alibi == 1.0
    assert (c["pythia"].activation, c["neox"].activation, c["bloom"].activation) == ("gelu", "gelu_tanh", "gelu_tanh")


def test_missing_keys_mean_what_they_mean_in_transformers():
    sizes = {"vocab_size": 131, "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6}
    neox = from_hf({"model_type": "gpt_neox", "intermediate_size": 136, **sizes})
    assert (neox.rope.dims, neox.rope.theta, neox.residual, neox.tied) == (4, 1e4, "parallel", False)
    assert neox.qkv_bias and neox.o_bias and neox.mlp_bias
    falcon = from_hf({"model_type": "falcon", **sizes})
    assert (falcon.n_kv_heads, falcon.ffn, falcon.tied, falcon.shared_norm) == (1, 384, True, True)
    assert from_hf({"model_type": "falcon", "num_kv_heads": 6, **sizes}) == falcon  # multi-query all the same
    new = from_hf({"model_type": "falcon", "new_decoder_architecture": True, **sizes})
    assert (new.n_kv_heads, new.shared_norm) == (6, False)
    bloom = from_hf({"model_type": "bloom", **sizes})
    assert (bloom.ffn, bloom.context, bloom.tied) == (384, 2048, True)


def test_old_spellings_mean_the_new_ones():
    new = tiny.CONFIGS["falcon40"]
    old = tiny.changed(
        new, hidden_size=..., num_hidden_layers=..., num_attention_heads=..., num_kv_heads=...,
        n_embed=96, n_layer=2, n_head=6, n_head_kv=3,
    )  # fmt: skip
    assert from_hf(old) == from_hf(new)
    assert from_hf({**old, "hidden_size": 96}) == from_hf({**old, "hidden_size": None}) == from_hf(new)


OFF = {  # config: a change to what was read from it, which must be seen in the logits
    "pythia": {"residual": "sequential"}, "neox": {"residual": "parallel"}, "falcon40": {"names": ""},
    "falconrw": {"alibi": 0.0}, "bloom": {"alibi": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("name", OFF)
def test_each_config_tests_what_it_says(tmp_path, name):
    """Without the switch it is there for, a config gives other logits, or asks for tensors that are not there."""
    from dataclasses import replace

    checkpoint = open_checkpoint(tiny.write_hf(tmp_path, tiny.CONFIGS[name], tiny.weights(tiny.CONFIGS[name])))
    other = replace(checkpoint, config=replace(checkpoint.config, **OFF[name]))
    if name == "falcon40":
        with pytest.raises(Unsupported, match="ln_"):
            tiny.compile_model(other, Reference())
        return
    steps = [tiny.compile_model(c, Reference()) for c in (checkpoint, other)]
    left, right = (tiny.run_step(s, s.layout, tiny.prompt(60)) for s in steps)
    assert np.abs(left - right).max() > 0.01


def _logits(path, count=17):
    step = tiny.compile_model(open_checkpoint(path), Reference())
    return tiny.run_step(step, step.layout, tiny.prompt(count))


@pytest.mark.parametrize("name", [n for n in NAMES if n in tiny.GGUF_CONFIGS])
def test_gguf_means_the_same(tmp_path, name):
    pytest.importorskip("gguf")
    c = tiny.CONFIGS[name]
    tensors = tiny.weights(c)
    gguf = tiny.write_gguf(tmp_path / "m.gguf", tiny.gguf_metadata(c), tiny.gguf_tensors(c, tensors))
    assert np.abs(_logits(gguf) - _logits(tiny.write_hf(tmp_path / "hf", c, tensors))).max() < 1e-6


def test_gguf_may_write_a_tied_head_out(tmp_path):
    """As converters do for BLOOM."""
    pytest.importorskip("gguf")
    c = tiny.CONFIGS["bloom"]
    tensors = tiny.weights(c)
    found = tiny.gguf_tensors(c, tensors)
    found["output.weight"] = found["token_embd.weight"]
    gguf = tiny.write_gguf(tmp_path / "m.gguf", tiny.gguf_metadata(c), found)
    assert np.abs(_logits(gguf) - _logits(tiny.write_hf(tmp_path / "hf", c, tensors))).max() < 1e-6


def test_bloom_files_of_the_bare_model(tmp_path):
    c = tiny.CONFIGS["bloom"]
    tensors = tiny.weights(c)
    bare = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    got = _logits(tiny.write_hf(tmp_path / "bare", c, bare))
    assert np.array_equal(got, _logits(tiny.write_hf(tmp_path / "whole", c, tensors)))


def test_masks_and_frequencies_of_old_neox_files_are_passed_over_but_no_bias_is(tmp_path):
    c = tiny.CONFIGS["pythia"]
    tensors = tiny.weights(c)
    spare = {
        f"gpt_neox.layers.{i}.attention.{name}": np.ones(shape, np.float32)
        for i in range(2)
        for name, shape in (("bias", (1, 1, 8, 8)), ("masked_bias", ()), ("rotary_emb.inv_freq", (10,)))
    }
    got = _logits(tiny.write_hf(tmp_path / "old", c, {**tensors, **spare}))
    assert np.array_equal(got, _logits(tiny.write_hf(tmp_path / "new", c, tensors)))
    unbiased = tiny.write_hf(tmp_path / "unbiased", {**c, "attention_bias": False}, tensors)
    with pytest.raises(Unsupported, match="attention.*bias"):
        _logits(unbiased)


def test_a_tied_falcon_may_store_its_head(tmp_path):
    c = tiny.CONFIGS["falcon40"]
    tensors = tiny.weights(c)
    stored = {**tensors, "lm_head.weight": tensors["transformer.word_embeddings.weight"]}
    got = _logits(tiny.write_hf(tmp_path / "stored", c, stored))
    assert np.array_equal(got, _logits(tiny.write_hf(tmp_path / "tied", c, tensors)))


def test_falcon_gguf_in_another_layout_is_refused():
    c = tiny.CONFIGS["falcon40"]
    metadata = {**tiny.gguf_metadata(c), "falcon.tensor_data_layout": "grouped"}
    with pytest.raises(Unsupported, match="tensor_data_layout = 'grouped'"):
        from_gguf(metadata, [tiny.gguf_name(c, x) for x in tiny.shapes(c)], lambda name: [], "m.gguf")


def test_slopes_of_six_heads():
    """A power of two takes powers of one base; the two heads beyond 4 take those of 8 heads in between."""
    assert alibi_slopes(6) == (2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3)
    assert alibi_slopes(3) == (2**-4, 2**-8, 2**-2)
