"""Smoothing: which norms carry a scale, that folding changes nothing but rounding, and how scales are calibrated."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import tiny
import toy
from ridgeline.backends.base import MULTIPLIES
from ridgeline.backends.reference import Reference
from ridgeline.config import EngineConfig
from ridgeline.engine import calibrate
from ridgeline.engine.load import load, open_model, smoothed_checkpoint, smoothing_label
from ridgeline.errors import ConfigError
from ridgeline.models import build
from ridgeline.models.hf import from_hf
from ridgeline.ops import rms_norm
from ridgeline.program.passes import pipeline
from ridgeline.program.passes.repack import parse_formats
from ridgeline.program.passes.smooth import smoothed
from ridgeline.weights.load import open_checkpoint

FORMATS = parse_formats("int8")


def program(name, **options):
    c = tiny.CONFIGS[name]
    listed = pipeline.passes(lambda w: "f32", "f32", formats=FORMATS, smoothing="x", multiplies=MULTIPLIES, **options)
    return pipeline.run(build(from_hf(c)), listed)


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_the_norms_of_every_layer_are_smoothed_and_no_other(name):
    c, found = from_hf(tiny.CONFIGS[name]), smoothed(program(name))
    per_layer = 1 if c.shared_norm else 2
    assert len(found) == per_layer * c.layers
    for scale, weights in found.items():
        vectors = [w for w in weights if len(w.shape) == 1]
        matrices = [w for w in weights if len(w.shape) > 1]
        assert scale == f"{vectors[0].name}@x" and {w.shape for w in vectors} == {(c.hidden,)}
        assert len(vectors) == (2 if c.norm == "layer" else 1)
        leaves = {p.split(".")[-2] for w in matrices for p in w.parts}
        assert leaves <= {"q", "k", "v", "gate", "up"} and all(w.format == "int8" for w in matrices)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_rows_are_quantised_as_their_outliers_allow(name, fused):
    read = {}
    for i in program(name, fused=fused).instrs:
        if i.op == "linear":
            for part in i.operands["w"].parts:
                leaf = part.split(".")[-2]
                read.setdefault(leaf, set()).add(i.operands["x"].type.dtype)
    head = read.pop("embed", None) or read.pop("head")
    assert head == {"i8g32x2"} and read.pop("down") == {"i8g32"}
    assert set(map(tuple, read.values())) == {("i8",)}  # q, k, v, gate, up behind norms, o behind attention


@pytest.fixture(params=["llama", "gpt2", "gemma3", "falcon7"])
def checkpoint(request, tmp_path):
    c = tiny.CONFIGS[request.param]
    return open_checkpoint(tiny.write_hf(tmp_path / "m", c, tiny.weights(c)))


def test_folding_changes_nothing_but_rounding(checkpoint):
    """With weights left in float32 the smoothed model is the same function."""
    plain = tiny.compile_model(checkpoint, Reference())
    listed = pipeline.passes(checkpoint.format_of, "f32", formats=FORMATS, smoothing="x")
    marked = pipeline.run(build(checkpoint.config), listed)
    rng = np.random.default_rng(0)
    scales = {k: np.exp(rng.standard_normal(v[0].shape[0])).astype(np.float32) for k, v in smoothed(marked).items()}
    scaled = dataclasses.replace(checkpoint, scales=scales)
    pages = 2 * plain.layout.limits.pages * len(marked.states)
    step = Reference().compile(marked, lambda w: scaled.read(dataclasses.replace(w, repack="")), plain.layout, pages)
    for store in step.states.values():
        store.poison()
    ids = tiny.prompt(40)
    a, b = (tiny.run_step(s, plain.layout, ids) for s in (plain, step))
    assert np.abs(a - b).max() <= 1e-4 * np.abs(a).max()


def test_scales():
    rows, columns = np.array([4.0, 100.0, 0.0, 1.0], np.float32), np.array([1.0, 0.25, 1.0, 0.0], np.float32)
    assert calibrate.scale_of(rows, columns, 0.5).tolist() == [2, 20, 1, 1]
    assert calibrate.scale_of(rows, columns, 1.0).tolist() == [4, 100, 1, 1]


TEXT = "The quick brown fox jumps over the lazy dog. " * 4


@pytest.fixture
def opened(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "text").write_text(TEXT)
    config = EngineConfig(
        str(toy.write(tmp_path / "m")), backend="reference", format="int8", smoothing=0.5,
        calibration=str(tmp_path / "text"), kv_memory=1 << 20, max_requests=1,
    )  # fmt: skip
    return config, open_model(config)


def calibrator(model, text=TEXT):
    return calibrate.Calibrator(model.checkpoint, model.backend, model.tokenizer, text)


def observed(model):
    seen = {}

    def visit(readers, x):
        for name in readers:
            seen[name] = np.maximum(seen.get(name, 0), np.abs(x).max(axis=0))

    calibrator(model).observe(visit)
    return seen


def test_calibration_sees_what_linears_read(opened):
    _, model = opened
    seen, weights = observed(model), build(model.config).weights
    matrices = {name: w for name, w in weights.items() if len(w.shape) > 1 and name.startswith("layers")}
    assert {name: x.shape for name, x in seen.items()} == {name: (w.shape[1],) for name, w in matrices.items()}

    def read(name):
        return model.checkpoint.read(dataclasses.replace(weights[name], format="f32")).float32()

    ids = model.tokenizer.encode(TEXT, add_special=False, parse_special=False)
    first = rms_norm(read("embed.weight")[ids], read("layers.0.attn_norm.weight"), eps=model.config.norm_eps)
    assert np.allclose(seen["layers.0.attn.q.weight"], np.abs(first).max(axis=0), rtol=1e-6)
    assert np.array_equal(seen["layers.0.attn.q.weight"], seen["layers.0.attn.v.weight"])


def test_every_second_window_starts_with_bos(opened, monkeypatch):
    _, model = opened
    monkeypatch.setattr(calibrate, "_WINDOW", 50)
    fed, real = [], calibrate.steps

    def steps(step, layout, ids, want):
        fed.append(ids)
        return real(step, layout, ids, want)

    monkeypatch.setattr(calibrate, "steps", steps)
    observed(model)
    assert [len(ids) for ids in fed] == [50, 50, 50, 31]
    assert [ids[0] == model.tokenizer.bos_id for ids in fed] == [False, True, False, True]


def test_scales_are_kept_by_model_text_and_strength(opened, monkeypatch):
    config, model = opened
    first = smoothed_checkpoint(model, config).scales
    assert set(first) == set(smoothed(model.program)) and all(np.all(v > 0) for v in first.values())
    calls = []
    monkeypatch.setattr(calibrate.Calibrator, "observe", lambda *args: calls.append(args) or 1 / 0)
    again = smoothed_checkpoint(model, config).scales
    assert all(np.array_equal(v, again[k]) for k, v in first.items()) and not calls
    for change in ({"smoothing": 0.75}, {"calibration": ""}):
        other = dataclasses.replace(config, **change)
        assert smoothing_label(other) != smoothing_label(config)
        with pytest.raises(ZeroDivisionError):
            smoothed_checkpoint(open_model(other), other)


@pytest.mark.parametrize("damage", [b"", b"PK", "cut", "nan"])
def test_a_damaged_file_is_measured_again(opened, tmp_path, damage):
    config, model = opened
    first = smoothed_checkpoint(model, config).scales
    [file] = (tmp_path / "cache" / "ridgeline" / "calibration").iterdir()
    if damage == "nan":
        np.savez(file, **{k: v * np.float32("nan") for k, v in first.items()})
    else:
        file.write_bytes(file.read_bytes()[:100] if damage == "cut" else damage)
    again = smoothed_checkpoint(model, config).scales
    assert all(np.array_equal(v, again[k]) for k, v in first.items())


def test_a_smoothed_model_loads_and_says_so(opened):
    config, _ = opened
    info = load(config).engine.info
    rows = "activations int8 by row, int8 in groups of 32, two int8 terms in groups of 32"
    assert info.notes[0] == f"approximate: weights rounded again to int8, smoothed, {rows}"
    assert "not measured" in info.notes[1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"smoothing": 0.5}, "--format int8"),
        ({"smoothing": 0.5, "format": "int4"}, "--format int8"),
        ({"smoothing": 1.5, "format": "int8"}, "0 .none. to 1"),
        ({"smoothing": 0.5, "format": "int8", "activations": "float32"}, "does nothing"),
        ({"calibration": "x"}, "smoothing or sparsity"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        EngineConfig("m", backend="reference", **settings)


def test_smoothing_that_finds_nothing_is_refused(tmp_path):
    config = EngineConfig(str(toy.write(tmp_path / "m")), backend="reference", format="bf16,head=int8", smoothing=0.5)
    with pytest.raises(ConfigError, match="no int8 matrices"):
        open_model(config)


@pytest.mark.parametrize(("data", "words"), [(None, "No such file"), (b"\xff\xfe", "UTF-8"), (b"short", "at least 64")])
def test_calibration_texts_are_checked(opened, tmp_path, data, words):
    config, _ = opened
    if data is not None:
        (tmp_path / "other").write_bytes(data)
    with pytest.raises(ConfigError, match=words):
        load(dataclasses.replace(config, calibration=str(tmp_path / "other")))


def test_our_own_text_is_long_enough():
    assert len(calibrate.text_of(EngineConfig("m")).encode()) > 9_000
