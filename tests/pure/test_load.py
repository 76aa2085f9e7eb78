"""Checkpoints: the same weights from both file kinds, and a typed error naming the tensor for each broken file."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import tiny
from ridgeline import models
from ridgeline.backends.reference import Reference
from ridgeline.errors import ModelFileError, ModelNotFound, RidgelineError, Unsupported
from ridgeline.program.ir import Weight
from ridgeline.program.passes import pipeline
from ridgeline.weights.load import open_checkpoint, read_json

NAME = "llama"
C = tiny.CONFIGS[NAME]


def load_all(path):
    """What loading does up to the weights: config, program, shapes, every weight as float32 by name."""
    checkpoint = open_checkpoint(path)
    program = tiny.program_of(checkpoint, Reference())
    return {w.name: checkpoint.read(w).float32() for w in program.weights.values() if w.constant is None}


def write(tmp_path, kind, tensors=None, config=C, **changes):
    tensors = tiny.weights(C) if tensors is None else tensors
    config = tiny.changed(config, **changes)
    if kind == "hf":
        return tiny.write_hf(tmp_path / "m", config, tensors)
    pytest.importorskip("gguf")
    return tiny.write_gguf(tmp_path / "m.gguf", tiny.gguf_metadata(config), tiny.gguf_tensors(config, tensors))


@pytest.mark.parametrize("name", tiny.GGUF_CONFIGS)
def test_both_kinds_hold_the_same_weights(tmp_path, name):
    c = tiny.CONFIGS[name]
    hf, gguf = (load_all(write(tmp_path, k, tiny.weights(c), c)) for k in ("hf", "gguf"))
    assert list(hf) == list(gguf)
    for w, x in hf.items():
        assert np.array_equal(x, gguf[w]), w


def test_merged_weights_are_the_rows_of_their_parts(tmp_path):
    c = tiny.CONFIGS["biased"]
    tensors = tiny.weights(c)
    got = load_all(tiny.write_hf(tmp_path, c, tensors))
    parts = [f"model.layers.1.self_attn.{x}_proj" for x in "qkv"]
    for kind in ("weight", "bias"):
        merged = got["+".join(f"layers.1.attn.{x}.{kind}" for x in "qkv")]
        assert np.array_equal(merged, np.concatenate([tensors[f"{p}.{kind}"] for p in parts]))


@pytest.mark.parametrize("kind", ["hf", "gguf"])
@pytest.mark.parametrize("part", ["q", "k", "o"])
def test_rows_and_columns_are_cut(tmp_path, kind, part):
    """What sharding will ask for: a range of rows (of the unpermuted order), a range of columns."""
    checkpoint = open_checkpoint(write(tmp_path, kind))
    whole = tiny.weights(C)[f"model.layers.0.self_attn.{part}_proj.weight"]
    name = f"layers.0.attn.{part}.weight"
    rows = Weight(name, (16, 96), ("heads", ""), "f32", (name,), rows=((16, 32),))
    assert np.array_equal(checkpoint.read(rows).float32(), whole[16:32])
    columns = Weight(name, (len(whole), 32), ("", "heads"), "f32", (name,), columns=(32, 64))
    assert np.array_equal(checkpoint.read(columns).float32(), whole[:, 32:64])


def test_rows_of_a_vector_are_cut(tmp_path):
    c = tiny.CONFIGS["biased"]
    checkpoint = open_checkpoint(tiny.write_hf(tmp_path, c, tiny.weights(c)))
    name = "layers.0.attn.q.bias"
    got = checkpoint.read(Weight(name, (16,), ("heads",), "f32", (name,), rows=((32, 48),))).float32()
    assert np.array_equal(got, tiny.weights(c)["model.layers.0.self_attn.q_proj.bias"][32:48])


@pytest.mark.parametrize("kind", ["hf", "gguf"])
@pytest.mark.parametrize(
    "missing", ["model.norm", "lm_head", "model.layers.1.mlp.up_proj", "model.layers.0.self_attn.k_proj"]
)
def test_a_missing_tensor_is_named(tmp_path, kind, missing):
    tensors = tiny.weights(C)
    del tensors[f"{missing}.weight"]
    if (kind, missing) == ("gguf", "lm_head"):
        pytest.skip("a GGUF file without output.weight is a tied model")
    stored = f"{missing}.weight" if kind == "hf" else tiny.gguf_name(C, f"{missing}.weight")
    with pytest.raises(ModelFileError, match=f"no tensor '{stored}'"):
        load_all(write(tmp_path, kind, tensors))


SHAPES = {
    "a column less": ("model.layers.0.self_attn.q_proj.weight", (96, 95)),
    "a row less": ("model.layers.1.mlp.gate_proj.weight", (135, 96)),
    "q and k exchanged": ("model.layers.0.self_attn.k_proj.weight", (96, 96)),
    "transposed": ("model.layers.0.mlp.down_proj.weight", (136, 96)),
    "another vocabulary": ("model.embed_tokens.weight", (130, 96)),
    "a vector for a matrix": ("model.layers.0.mlp.up_proj.weight", (136 * 96,)),
    "a matrix for a vector": ("model.norm.weight", (1, 96)),
    "a short vector": ("model.layers.1.input_layernorm.weight", (95,)),
}


@pytest.mark.parametrize("kind", ["hf", "gguf"])
@pytest.mark.parametrize("what", SHAPES)
def test_a_wrong_shape_is_named(tmp_path, kind, what):
    name, shape = SHAPES[what]
    tensors = {**tiny.weights(C), name: np.ones(shape, np.float32)}
    path = tmp_path / "m"
    if kind == "hf":
        tiny.write_hf(path, C, tensors)
    else:
        pytest.importorskip("gguf")
        right = tiny.gguf_tensors(C, tiny.weights(C))
        tiny.write_gguf(path, tiny.gguf_metadata(C), {**right, tiny.gguf_name(C, name): tensors[name]})
    stored = name if kind == "hf" else tiny.gguf_name(C, name)
    with pytest.raises(ModelFileError, match=rf"{stored} has shape \({shape[0]}.*asks for"):
        load_all(path)


def test_wrong_shapes_are_seen_before_any_tensor_is_read(tmp_path):
    """Also when the rows of merged parts would add up."""
    tensors = tiny.weights(C)
    q, k = (f"model.layers.0.self_attn.{x}_proj.weight" for x in "qk")
    tensors[q], tensors[k] = tensors[k], tensors[q]
    checkpoint = open_checkpoint(write(tmp_path, "hf", tensors))
    closed = dataclasses.replace(checkpoint, source=_Unreadable(checkpoint.source))
    with pytest.raises(ModelFileError, match="q_proj"):
        tiny.program_of(closed, Reference())


class _Unreadable:
    def __init__(self, source):
        self.info, self.names = source.info, source.names

    def read(self, name, rows=None):
        raise AssertionError("a tensor is read")


@pytest.mark.parametrize("kind", ["hf", "gguf"])
@pytest.mark.parametrize(
    "extra",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.1.self_attn.q_norm.weight",
        "model.layers.2.mlp.up_proj.weight",
    ],
)
def test_a_tensor_that_nothing_reads_is_named(tmp_path, kind, extra):
    """A part of the model that this family would not compute, or layers beyond the config's."""
    tensors = {**tiny.weights(C), extra: np.ones(96, np.float32)}
    if kind == "gguf" and extra.endswith("0.self_attn.q_proj.bias"):
        pytest.skip("GGUF says by its tensors that there is a bias; then the others are missing")
    stored = extra if kind == "hf" else tiny.gguf_name(C, extra)
    with pytest.raises(Unsupported, match=f"'{stored}' is not understood"):
        load_all(write(tmp_path, kind, tensors))


def test_tensors_that_only_repeat_others_are_allowed(tmp_path):
    c = tiny.CONFIGS["smollm"]
    spare = {
        "lm_head.weight": tiny.weights(c)["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32),
    }
    tensors = tiny.weights(c)
    assert (
        load_all(tiny.write_hf(tmp_path, c, {**tensors, **spare})).keys()
        == load_all(tiny.write_hf(tmp_path, c, tensors)).keys()
    )


def test_a_head_of_its_own_counts_whatever_the_config_says(tmp_path):
    """As in transformers: a head that is stored and differs from the embedding is not tied to it."""
    c = tiny.CONFIGS["smollm"]
    head = tiny.weights(c)["model.embed_tokens.weight"].copy()
    head[130, 143] += 1
    loaded = load_all(tiny.write_hf(tmp_path, c, {**tiny.weights(c), "lm_head.weight": head}))
    assert np.array_equal(loaded["head.weight"], head)


@pytest.mark.parametrize("kind", ["hf", "gguf"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.01, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_refused(tmp_path, kind, kept):
    path = write(tmp_path, kind)
    file = path / "model.safetensors" if kind == "hf" else path
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ModelFileError, match="model.safetensors|m.gguf"):
        load_all(path)


def test_a_missing_shard_is_refused(tmp_path):
    folder = tiny.write_hf(tmp_path / "m", C, tiny.weights(C), shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(RidgelineError, match="00002-of-00003"):
        load_all(folder)


BAD_JSON = {
    "empty": b"",
    "not JSON": b"{",
    "a list": b"[1]",
    "not UTF-8": b'{"a": "\xff"}',
    "deep": b"[" * 100_000,
    "duplicate": b'{"model_type": "mamba", "hidden_size": 1}',
}


@pytest.mark.parametrize("what", BAD_JSON)
def test_a_bad_config_json_is_named(tmp_path, what):
    folder = tiny.write_hf(tmp_path / "m", C, tiny.weights(C))
    (folder / "config.json").write_bytes(BAD_JSON[what])
    with pytest.raises(RidgelineError, match=r"config\.json"):
        load_all(folder)


def test_a_missing_or_huge_config_json(tmp_path):
    with pytest.raises(ModelFileError, match=r"config\.json does not exist"):
        read_json(tmp_path / "config.json")
    with (tmp_path / "big.json").open("wb") as f:
        f.truncate(17 << 20)
    with pytest.raises(ModelFileError, match="over"):
        read_json(tmp_path / "big.json")
    with pytest.raises((ModelFileError, ModelNotFound)):
        open_checkpoint(tmp_path / "nothing.gguf")


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(C))
    with pytest.raises(ModelNotFound, match=r"model\.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("split", [3, "3", np.array([1, 2])])
def test_a_part_of_a_split_gguf_is_refused(tmp_path, split):
    from ridgeline.weights.gguf import GGUFFile
    from ridgeline.weights.source import GGUFSource

    file = GGUFFile(write(tmp_path, "gguf"))
    file.metadata["split.count"] = split
    with pytest.raises(Unsupported, match="split model"):
        GGUFSource(file)


@pytest.mark.parametrize("shape", [(7,), (8, 1), (5000,)])
def test_rope_factors_of_a_wrong_shape(tmp_path, shape):
    pytest.importorskip("gguf")
    tensors = {**tiny.gguf_tensors(C, tiny.weights(C)), "rope_freqs.weight": np.ones(shape, np.float32)}
    with pytest.raises(ModelFileError, match="rope_freqs.weight"):
        open_checkpoint(tiny.write_gguf(tmp_path / "m.gguf", tiny.gguf_metadata(C), tensors))


def test_opening_reads_no_weight(tmp_path):
    """A model whose data is all NaN opens, and its cost is known."""
    checkpoint = open_checkpoint(write(tmp_path, "hf", {k: x * np.nan for k, x in tiny.weights(C).items()}))
    program = models.build(checkpoint.config)
    assert pipeline.run(program, pipeline.passes(checkpoint.format_of, "f32"))


def test_parts_stored_in_different_formats_of_one_held_format(tmp_path, backend):
    """Quantisers mix formats by tensor; cpu holds q4_0 and q4_1 alike, but parts merge by how they are stored."""
    c = tiny.changed(tiny.CONFIGS["llama"], intermediate_size=160)
    tensors = tiny.weights(c)
    metadata, stored = tiny.gguf_metadata(c), tiny.gguf_tensors(c, tensors)
    path = tiny.write_gguf(tmp_path / "mixed.gguf", metadata, stored, "Q4_1", also={"attn_k": "Q4_0", "ffn_up": "F16"})
    fused, plain = (tiny.compile_model(open_checkpoint(path), backend, fused=fused) for fused in (True, False))
    ids = tiny.prompt(20)
    want = tiny.run_step(plain, plain.layout, ids)
    np.testing.assert_allclose(tiny.run_step(fused, fused.layout, ids), want, atol=1e-4)
