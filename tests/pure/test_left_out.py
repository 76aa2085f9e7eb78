"""What files leave out: the values that readers put in its place are those of the released models."""

from __future__ import annotations

import pytest

import tiny
from ridgeline.errors import Unsupported
from ridgeline.models.config import for_context
from ridgeline.models.gguf import from_gguf
from ridgeline.models.hf import from_hf


def gguf(arch, tensors=(), **keys):
    sizes = {
        "context_length": 2048, "embedding_length": 96, "block_count": 2, "feed_forward_length": 128,
        "attention.head_count": 6, "vocab_size": 100,
    }  # fmt: skip
    eps = "attention.layer_norm_rms_epsilon" if arch.startswith("gemma") else "attention.layer_norm_epsilon"
    named = {**sizes, eps: 1e-5, **{k.replace("__", "."): v for k, v in keys.items()}}
    metadata = {"general.architecture": arch, **{f"{arch}.{k}": v for k, v in named.items()}}
    return from_gguf(metadata, tensors, lambda name: [], "m.gguf")


def test_soft_caps_of_gemma2_are_on_where_the_keys_are_missing_and_off_where_they_are_null():
    c = tiny.CONFIGS["gemma2"]
    missing = from_hf(tiny.changed(c, attn_logit_softcapping=..., final_logit_softcapping=...))
    null = from_hf(tiny.changed(c, attn_logit_softcapping=None, final_logit_softcapping=None))
    assert (missing.attention_softcap, missing.logit_softcap) == (50.0, 30.0)
    assert (null.attention_softcap, null.logit_softcap) == (0.0, 0.0)


def test_gemma3_has_no_cap_on_scores():
    with pytest.raises(Unsupported, match="attn_logit_softcapping"):
        from_hf(tiny.changed(tiny.CONFIGS["gemma3"], attn_logit_softcapping=50.0))


def test_layers_and_scale_of_gemma_files():
    small = gguf("gemma3", attention__key_length=256, attention__sliding_window=512, block_count=18)
    assert small.windows == ((512,) * 5 + (0,)) * 3
    assert (small.rope.theta, small.local_rope.theta, small.attention_scale) == (1e6, 1e4, 256**-0.5)
    large = gguf("gemma3", attention__key_length=128, attention__sliding_window=1024, block_count=62)
    assert large.attention_scale == 16**-0.5
    two = gguf("gemma2", attention__key_length=16, block_count=26)
    assert two.windows == (4096, 0) * 13 and two.attention_softcap == 50.0


def test_rope_base_of_falcon_11b():
    eleven = {"embedding_length": 4096, "attention__head_count": 32, "attention__head_count_kv": 8}
    assert gguf("falcon", block_count=60, **eleven).rope.theta == 500042.0
    assert gguf("falcon", ["blk.0.attn_norm_2.weight"], block_count=60, **eleven).rope.theta == 1e4
    assert gguf("falcon", attention__head_count_kv=1).rope.theta == 1e4


def test_activation_of_neox():
    assert gguf("gptneox", block_count=44, embedding_length=6144, attention__head_count=64).activation == "gelu_tanh"
    assert gguf("gptneox").activation == "gelu"


def test_longrope_takes_its_short_factors_for_a_context_up_to_the_original_one():
    c = from_hf(tiny.CONFIGS["phi3long"])
    original = c.rope.original_context
    assert for_context(c, 0) is c and for_context(c, original + 1) is c
    short = for_context(c, original)
    assert short.rope.factors == c.rope.short_factors != c.rope.factors
    assert for_context(from_hf(tiny.CONFIGS["llama"]), 16) == from_hf(tiny.CONFIGS["llama"])
