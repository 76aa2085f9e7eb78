"""Tensor names: every weight of every family has its Hugging Face and GGUF name, and none is left over."""

from __future__ import annotations

import pytest

import tiny
from ridgeline import models
from ridgeline.models.hf import from_hf
from ridgeline.models.names import GGUF, HF, NAMES, names_of


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_a_model_asks_for_exactly_the_tensors_there_are(name):
    c = tiny.CONFIGS[name]
    config = from_hf(c)
    names = names_of(config)
    asked = [w.name for w in models.build(config).weights.values() if w.constant is None]
    assert {names.stored(w, HF) for w in asked} == set(tiny.shapes(c))
    if name in tiny.GGUF_CONFIGS:
        assert {names.stored(w, GGUF) for w in asked} == {tiny.gguf_name(c, x) for x in tiny.shapes(c)}


def test_layers_are_numbered():
    assert NAMES["llama"].stored("layers.17.attn.q.weight", HF) == "model.layers.17.self_attn.q_proj.weight"
    assert NAMES["qwen3"].stored("layers.0.attn.k_norm.weight", GGUF) == "blk.0.attn_k_norm.weight"
    assert NAMES["llama"].stored("norm.weight", GGUF) == "output_norm.weight"


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("kind", [HF, GGUF])
def test_weights_share_a_name_only_where_they_are_fused(family, kind):
    names = NAMES[family]
    shared = [names.shares(w, kind) for w in names.weights]
    leaves = {tuple(w.split(".")[-2] for w in group) for group in shared if len(group) > 1}
    assert leaves <= ({("q", "k", "v"), ("gate", "up")} if names.fused[kind] else set())


def test_every_family_has_names_and_an_architecture():
    assert {row.split("/")[0] for row in NAMES} == set(models.FAMILIES)
    assert set(models.ARCHITECTURES.values()) == set(models.FAMILIES) - {"mistral"}
