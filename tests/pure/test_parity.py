"""Logits of tiny models on each backend equal what transformers gave (stored by make_parity.py), within 1e-4.

From safetensors and from GGUF, whole and chunked, on shuffled pages full of NaN.
"""

from __future__ import annotations

import numpy as np
import pytest

import make_parity
import tiny
from ridgeline.weights.load import open_checkpoint

CHUNKINGS = {"whole": (), "ones_then_rest": (1, 1, 1, 64, 133), "sevens": (7,), "page": (64,), "odd": (63, 2, 65, 70)}
BOUND = 1e-4


@pytest.fixture(scope="module")
def stored():
    with np.load(make_parity.STORED) as file:
        return dict(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


def checkpoint(folder, name, kind):
    c = tiny.CONFIGS[name]
    path = folder / f"{name}.{kind}"
    if not path.exists():
        tensors = tiny.weights(c)
        if kind == "hf":
            tiny.write_hf(path, c, tensors, shards=3 if name == "biased" else 1)
        else:
            tiny.write_gguf(path, tiny.gguf_metadata(c), tiny.gguf_tensors(c, tensors))
    return open_checkpoint(path)


def check(stored, name, length, logits):
    expected = stored[f"{name}/{length}"]
    assert np.abs(logits[make_parity.POSITIONS[length]] - expected).max() <= BOUND


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_safetensors(stored, folder, backend, name):
    step = tiny.compile_model(checkpoint(folder, name, "hf"), backend)
    for length in make_parity.LENGTHS:
        check(stored, name, length, tiny.run_step(step, step.layout, tiny.prompt(length), seed=length))


@pytest.mark.parametrize("name", tiny.GGUF_CONFIGS)
def test_gguf(stored, folder, backend, name):
    pytest.importorskip("gguf")
    step = tiny.compile_model(checkpoint(folder, name, "gguf"), backend)
    for length in make_parity.LENGTHS:
        check(stored, name, length, tiny.run_step(step, step.layout, tiny.prompt(length), (50,)))


@pytest.mark.parametrize("chunking", [c for c in CHUNKINGS if c != "whole"])
@pytest.mark.parametrize("name", ["llama3", "mistral", "qwen2w", "qwen3"])
def test_chunked(stored, folder, backend, name, chunking):
    step = tiny.compile_model(checkpoint(folder, name, "hf"), backend)
    check(stored, name, 200, tiny.run_step(step, step.layout, tiny.prompt(200), CHUNKINGS[chunking]))
    check(stored, name, 17, tiny.run_step(step, step.layout, tiny.prompt(17), (1,)))


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_chunks_of_any_size_give_the_same_bits(folder, backend, name):
    step = tiny.compile_model(checkpoint(folder, name, "hf"), backend)
    ids = tiny.prompt(100)
    whole = tiny.run_step(step, step.layout, ids)
    for sizes in ((1,), (13,), (64, 36), (99, 1)):
        assert np.array_equal(tiny.run_step(step, step.layout, ids, sizes, seed=sizes[0]), whole), sizes


@pytest.mark.parametrize("format", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_packed_weights_mean_their_unpacked_values(tmp_path, backend, name, format):
    """A packed GGUF gives the logits of a folder that holds what the gguf package unpacks from it."""
    gguf = pytest.importorskip("gguf")
    c = tiny.CONFIGS[name]
    kind = gguf.GGMLQuantizationType[format]
    exact = tiny.weights(c)
    unpacked = {
        k: gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind).astype(np.float32)
        if x.ndim > 1 and x.shape[-1] % 32 == 0
        else x
        for k, x in exact.items()
    }
    packed = tiny.write_gguf(tmp_path / "m.gguf", tiny.gguf_metadata(c), tiny.gguf_tensors(c, exact), format)
    tiny.write_hf(tmp_path / "hf", c, unpacked)
    steps = [tiny.compile_model(open_checkpoint(p), backend) for p in (packed, tmp_path / "hf")]
    got, expected = (tiny.run_step(s, s.layout, tiny.prompt(17)) for s in steps)
    assert np.abs(got - expected).max() <= BOUND


@pytest.mark.parametrize("name", ["llama3", "linear", "yarn", "biased", "mistral", "qwen2w"])
def test_each_config_tests_what_it_says(stored, name):
    """Without the switch it is there for, a config gives other logits: the parity above would notice its loss."""
    off = {
        "llama3": {"rope_parameters": {"rope_theta": 500000.0}},
        "linear": {"rope_scaling": None},
        "yarn": {"rope_scaling": None},
        "biased": {"attention_bias": False, "mlp_bias": False},
        "mistral": {"sliding_window": None},
        "qwen2w": {"use_sliding_window": False},
    }[name]
    from ridgeline.backends.reference import Reference
    from ridgeline.models.hf import from_hf
    from ridgeline.weights.load import Checkpoint
    from ridgeline.weights.source import Raw, TensorInfo

    c = tiny.changed(tiny.CONFIGS[name], **off)
    tensors = tiny.weights(tiny.CONFIGS[name])

    class Memory:
        def names(self):
            return tiny.shapes(c)

        def info(self, name):
            return TensorInfo(tensors[name].shape, "f32")

        def read(self, name, rows=None):
            x = tensors[name]
            return Raw("f32", x.shape, x.reshape(-1, x.shape[-1]).view(np.uint8))

    step = tiny.compile_model(Checkpoint(from_hf(c), Memory(), "hf", "memory", {}), Reference())
    logits = tiny.run_step(step, step.layout, tiny.prompt(200))
    assert np.abs(logits[199] - stored[f"{name}/200"][3]).max() > 100 * BOUND
