"""Tensor names: every weight of every family has its Hugging Face and GGUF name, and no two share one."""

from __future__ import annotations

import pytest

import tiny
from ridgeline import models
from ridgeline.models.hf import from_hf
from ridgeline.models.names import NAMES, UNPERMUTE, stored_name


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_a_model_asks_for_exactly_the_tensors_there_are(name):
    c = tiny.CONFIGS[name]
    asked = [w.name for w in models.build(from_hf(c)).weights.values() if w.constant is None]
    assert sorted(stored_name(c["model_type"], w, "hf") for w in asked) == sorted(tiny.shapes(c))
    assert sorted(stored_name(c["model_type"], w, "gguf") for w in asked) == sorted(map(tiny.gguf_name, tiny.shapes(c)))


def test_layers_are_numbered():
    assert stored_name("llama", "layers.17.attn.q.weight", "hf") == "model.layers.17.self_attn.q_proj.weight"
    assert stored_name("qwen3", "layers.0.attn.k_norm.weight", "gguf") == "blk.0.attn_k_norm.weight"
    assert stored_name("llama", "norm.weight", "gguf") == "output_norm.weight"


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("kind", [0, 1])
def test_no_two_weights_share_a_name(family, kind):
    stored = [names[kind] for names in NAMES[family].values()]
    assert len(set(stored)) == len(stored)


def test_every_family_has_names_and_only_llama_is_permuted():
    assert set(NAMES) == set(models.FAMILIES) and set(UNPERMUTE) == {"llama"}
