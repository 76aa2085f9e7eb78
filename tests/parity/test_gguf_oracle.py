"""Tiny GGUF files against readers of GGUF that are not ours: how they name, order and describe what they hold.

The gguf package maps Hugging Face names to GGUF's for every architecture. transformers reads the files of most, by code
of its own: its config, its model with its weights, then logits equal to ours from the same file. What it does not read:
Gemma 1, GPT-NeoX and StarCoder at all, and the rows of q, k and v of Falcons with several KV heads.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

import make_parity
import tiny
from ridgeline.weights.load import open_checkpoint

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed (the extra `dev`)")
torch = pytest.importorskip("torch", reason="torch is not installed (the extra `torch`)")
pytest.importorskip("transformers", reason="transformers is not installed (the extra `parity`)")
reader = pytest.importorskip("transformers.modeling_gguf_pytorch_utils", reason="this transformers reads no GGUF")

pytestmark = pytest.mark.parity
BOUND = 1e-4
ARCHITECTURES = {
    "mistral": "llama", "gpt_bigcode": "starcoder", "gpt_neox": "gptneox", "gemma3_text": "gemma3",
}  # fmt: skip
UNREAD = ("gemma", "gpt_bigcode", "gpt_neox")  # model types whose files transformers does not read
GROUPED = ("falcon40", "falcon11")  # it leaves the rows of these as they lie
READ = [n for n in tiny.GGUF_CONFIGS if tiny.CONFIGS[n]["model_type"] not in UNREAD and n not in GROUPED]
NOT_READ = {  # what transformers takes from no file, though most of it is said there, by model type
    "llama": "rope_parameters rope_scaling attention_bias mlp_bias",
    "mistral": "sliding_window",
    "qwen2": "",
    "qwen3": "head_dim",
    "gemma2": "query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping",
    "gemma3_text": "query_pre_attn_scalar",
    "gpt2": "vocab_size n_positions",
    "starcoder2": "vocab_size rope_theta sliding_window",
    "phi3": "original_max_position_embeddings rope_scaling sliding_window partial_rotary_factor pad_token_id",
    "falcon": "tie_word_embeddings layer_norm_epsilon",
    "bloom": "tie_word_embeddings",
}


@functools.cache
def architectures():
    return {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}


@pytest.mark.parametrize("name", [n for n in tiny.CONFIGS if not tiny.CONFIGS[n].get("alibi")])
def test_names(name):
    """Every tensor of every config, but of Falcon RW, whose second norm has no name in GGUF."""
    c = tiny.CONFIGS[name]
    names = gguf.get_tensor_name_map(architectures()[ARCHITECTURES.get(c["model_type"], c["model_type"])], 9)
    for hf in tiny.shapes(c):
        bare = hf.removeprefix("transformer.") if c["model_type"] == "bloom" else hf  # as its converter does
        assert names.get_name(bare, try_suffixes=(".weight", ".bias")) == tiny.gguf_name(c, hf)


def write(folder, name):
    c = tiny.CONFIGS[name]
    tensors = tiny.weights(c, seed=2)
    return tiny.write_gguf(folder / "m.gguf", tiny.gguf_metadata(c), tiny.gguf_tensors(c, tensors)), tensors


def rounded(x):
    """A setting with its floats as float32, which is what files hold."""
    if isinstance(x, dict):
        return {k: rounded(v) for k, v in x.items()}
    return float(np.float32(x)) if isinstance(x, float) else x


def read_by_transformers(path, c):
    """(config keys, weights) of a file, by transformers alone. What it reads must be what the tiny config says."""
    from transformers import AutoModelForCausalLM

    said = dict(reader.load_gguf_checkpoint(path)["config"])
    keys = said | {k: c[k] for k in NOT_READ[c["model_type"]].split() if k in c}
    config = make_parity.transformers_config(keys)
    got, wanted = config.to_dict(), make_parity.transformers_config(c).to_dict()
    for key in (said.keys() & wanted.keys() | {"rope_parameters"}) - {"model_type"}:
        assert rounded(got.get(key)) == rounded(wanted.get(key)), key
    named = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # Mistral's file says "llama"
    weights = reader.load_gguf_checkpoint(path, return_tensors=True, model_to_load=named)["tensors"]
    return keys | {"model_type": c["model_type"]}, weights


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@pytest.mark.parametrize("name", READ)
def test_logits_from_the_same_file(tmp_path, backend, name):
    c = tiny.CONFIGS[name]
    path, stored = write(tmp_path, name)
    keys, weights = read_by_transformers(path, c)
    for hf, x in stored.items():
        assert np.abs(weights[hf].numpy() - x).max() <= 1e-6, hf  # Gemma's norms are rounded by the 1 on top
    theirs = make_parity.transformers_model(keys, {k: x.numpy() for k, x in weights.items()})
    step = tiny.compile_model(open_checkpoint(path), backend)
    for length in (17, 150):
        ids = tiny.prompt(length, seed=length)
        got = tiny.run_step(step, step.layout, ids)
        assert np.abs(got - make_parity.transformers_logits(theirs, ids)).max() <= BOUND


def test_files_that_transformers_does_not_read(tmp_path):
    """It says so: once it reads them, they belong in the test above."""
    for name in tiny.GGUF_CONFIGS:
        if tiny.CONFIGS[name]["model_type"] in UNREAD:
            with pytest.raises(ValueError, match="is not supported yet"):
                reader.load_gguf_checkpoint(write(tmp_path, name)[0])


@pytest.mark.parametrize("name", ["falcon7", *GROUPED])
def test_rows_of_grouped_falcons(name):
    """q, then k, then v, as transformers' own attention takes them out of the fused rows of a checkpoint."""
    c = tiny.CONFIGS[name]
    tensors = tiny.weights(c)
    attention = make_parity.transformers_model(c, tensors).transformer.h[0].self_attention
    stored = tiny.gguf_tensors(c, tensors)
    kv_heads = c.get("num_kv_heads", 1)
    for kind in ("weight", "bias") if c["bias"] else ("weight",):
        fused = torch.from_numpy(tensors[f"transformer.h.0.self_attention.query_key_value.{kind}"])
        parts = attention._split_heads(fused.reshape(len(fused), -1).T[None])  # [1, columns, heads, head dim] each
        q, k, v = (x[0].permute(1, 2, 0).numpy() for x in parts)
        k, v = (x[:: len(x) // kv_heads] for x in (k, v))  # repeated for the queries of a group
        rows = np.concatenate([x.reshape(-1, x.shape[-1]) for x in (q, k, v)]).reshape(fused.shape)
        assert np.array_equal(stored[f"blk.0.attn_qkv.{kind}"], rows)


def test_rows_of_gpt_neox():
    """Its converter orders them as BLOOM's does, whose rows transformers puts back."""
    c = tiny.CONFIGS["pythia"]
    tensors = tiny.weights(c)
    back = reader.BloomTensorProcessor({"n_head": c["num_attention_heads"], "hidden_size": c["hidden_size"]})
    stored = tiny.gguf_tensors(c, tensors)
    for kind in ("weight", "bias"):
        name = f"blk.1.attn_qkv.{kind}"
        hf = tensors[f"gpt_neox.layers.1.attention.query_key_value.{kind}"]
        assert not np.array_equal(stored[name], hf)
        assert np.array_equal(back.process(stored[name], name).weights, hf)


def test_norms_of_gemma_1():
    """They hold the whole weight, as Gemma 2's do, which transformers reads."""
    for name in ("gemma", "gemma2"):
        tensors = tiny.weights(tiny.CONFIGS[name])
        stored = tiny.gguf_tensors(tiny.CONFIGS[name], tensors)["output_norm.weight"]
        back = reader.Gemma2TensorProcessor().process(stored, "output_norm.weight").weights
        assert np.abs(back - tensors["model.norm.weight"]).max() <= 1e-6
