"""Activation sparsity: what a threshold means, where the pass puts it, and how it is calibrated."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import tiny
import toy
from ridgeline.backends.base import MULTIPLIES
from ridgeline.config import EngineConfig
from ridgeline.engine import calibrate
from ridgeline.engine.load import load, open_model
from ridgeline.errors import ConfigError
from ridgeline.models import build
from ridgeline.models.hf import from_hf
from ridgeline.ops import quantize_act
from ridgeline.ops.spec import INT8_GROUPS
from ridgeline.program.approximations import approximations, key
from ridgeline.program.passes import pipeline
from ridgeline.program.passes.sparsify import sparsify
from ridgeline.program.verify import verify

TEXT = "The quick brown fox jumps over the lazy dog. " * 4


@pytest.mark.parametrize("dtype", [*INT8_GROUPS, "bf16", "f32"])
def test_small_values_become_zero_and_others_keep_theirs(dtype):
    x = np.random.default_rng(0).standard_normal((4, 80)).astype(np.float32)
    x[0], x[1, 0], x[1, 1] = 0.1, 0.5, -0.5
    got, plain = quantize_act(x, dtype=dtype, threshold=0.5), quantize_act(np.where(abs(x) < 0.5, 0, x), dtype=dtype)
    if dtype in INT8_GROUPS:
        got, plain = got.float32(), plain.float32()
    assert np.array_equal(got, plain) and not got[0].any()
    assert not got[np.abs(x) < 0.5].any() and (got[np.abs(x) >= 0.5] != 0).all()


def program(activations="auto", fmt="q4_1"):
    listed = pipeline.passes(
        lambda w: "f32" if len(w.shape) == 1 else fmt, "f32", multiplies=MULTIPLIES, activations=activations
    )
    return pipeline.run(build(from_hf(tiny.CONFIGS["llama"])), listed)


@pytest.mark.parametrize("activations", ["auto", "float32"])
def test_each_row_is_cut_once(activations):
    plain = program(activations)
    names = [i.operands["w"].parts for i in plain.forward.instrs if i.op == "linear"]
    thresholds = {part: 1.0 + n for n, parts in enumerate(names) for part in parts}
    sparse = verify(sparsify(plain, thresholds))
    made = {i.outputs[0].id: i for i in sparse.forward.instrs if i.op == "quantize_act"}
    read = [(i.operands["w"].parts, made[i.operands["x"].buffer.id]) for i in sparse.forward.instrs if i.op == "linear"]
    assert [parts for parts, _ in read] == names and len(made) == len(names)
    for parts, cut in read:
        assert cut.attrs["threshold"] == thresholds[parts[0]]
        terms = "i8g32x2" if parts[0].split(".")[-2] in ("q", "k", "v") else "i8g32"
        assert cut.attrs["dtype"] == ("f32" if activations == "float32" else terms)
    assert sparse.sample == plain.sample  # the head reads what it did
    assert "small values of rows cut off" in approximations(sparse) and key(sparse) != key(plain)
    assert sparsify(plain, {}) == plain


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "text").write_text(TEXT)
    return EngineConfig(
        str(toy.write(tmp_path / "m")), backend="reference", sparsity=0.4, calibration=str(tmp_path / "text"),
        kv_memory=1 << 20, max_requests=1,
    )  # fmt: skip


def test_thresholds_leave_the_part_that_was_asked_for(config, monkeypatch):
    monkeypatch.setattr(calibrate, "_SAMPLES", 1 << 20)  # all there are: the text is short
    opened = open_model(config)
    calibrator = calibrate.Calibrator(opened.checkpoint, opened.backend, opened.tokenizer, TEXT)
    cut = {i.outputs[0].id: i.attrs["threshold"] for i in opened.program.instrs if i.op == "quantize_act"}
    threshold = {
        part: cut[i.operands["x"].buffer.id]
        for i in opened.program.forward.instrs if i.op == "linear" for part in i.operands["w"].parts
    }  # fmt: skip
    below, total = dict.fromkeys(threshold, 0), dict.fromkeys(threshold, 0)

    def visit(readers, x):
        for name in readers:
            below[name] += int((np.abs(x) < threshold[name]).sum())
            total[name] += x.size

    calibrator.observe(visit)
    assert all(abs(below[name] / total[name] - 0.4) < 0.001 for name in threshold)
    monkeypatch.setattr(calibrate.Calibrator, "observe", lambda *args: 1 / 0)
    assert open_model(config).program == opened.program  # from the cache
    with pytest.raises(ZeroDivisionError):
        open_model(dataclasses.replace(config, sparsity=0.5))


def test_a_sparse_model_loads_and_says_so(config):
    assert load(config).engine.info.notes[0] == "approximate: small values of rows cut off"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sparsity": 1.0}, "below 1"),
        ({"sparsity": -0.1}, "0 .none."),
        ({"sparsity": 0.4, "smoothing": 0.5, "format": "int8"}, "do not go together"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        EngineConfig("m", backend="reference", **settings)
