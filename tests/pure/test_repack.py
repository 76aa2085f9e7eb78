"""`--format`: which weights are packed anew in what, the bytes they get, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import tiny
import toy
from ridgeline.backends.reference import Reference
from ridgeline.config import EngineConfig
from ridgeline.engine.load import open_model
from ridgeline.errors import ConfigError, Unsupported
from ridgeline.models import build
from ridgeline.program import cost
from ridgeline.program.approximations import approximations, key
from ridgeline.program.passes import pipeline
from ridgeline.program.passes.repack import AS_STORED, parse_formats, roles_of
from ridgeline.quant.format import FORMATS
from ridgeline.weights import repack as packing
from ridgeline.weights.load import open_checkpoint

UNTIED = tiny.changed(tiny.CONFIGS["llama"], tie_word_embeddings=False, intermediate_size=160)


def program_of(checkpoint, spec="", fused=True):
    listed = pipeline.passes(checkpoint.format_of, "f32", fused=fused, formats=parse_formats(spec))
    return pipeline.run(build(checkpoint.config), listed)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    made = {}
    for name, c in (("tied", tiny.changed(UNTIED, tie_word_embeddings=True)), ("untied", UNTIED)):
        made[name] = open_checkpoint(tiny.write_hf(tmp_path_factory.mktemp("m") / name, c, tiny.weights(c)))
    return made


def formats(program):
    return {name: w.format for name, w in program.weights.items() if len(w.shape) > 1}


@pytest.mark.parametrize(
    ("text", "embedding", "head", "rest"),
    [
        ("", "", "", ""),
        ("int8", "int8", "int8", "int8"),
        ("int4", "q4_0", "q4_0", "q4_0"),
        ("int4,head=int8,embedding=bf16", "bf16", "int8", "q4_0"),
        ("head=q8_0", "", "q8_0", ""),
        ("int4_g128, head=stored", "int4_g128", "", "int4_g128"),
        ("rest=f16", "", "", "f16"),
    ],
)
def test_parsing(text, embedding, head, rest):
    found = parse_formats(text)
    assert (found.embedding, found.head, found.rest) == (embedding, head, rest)
    assert bool(found) == bool(text) and (found == AS_STORED) == (not text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("int5", "'int5'.*known: .*int8"),
        ("q4_k", "q4_k but not packed.*q4_1"),
        ("int4,int8", "one format for all"),
        ("head=int8,int4", "one format for all"),
        ("head=int8,head=int4", "one format for all"),
        ("tail=int8", "'tail'.*embedding, head, rest"),
        ("head=", "''"),
        ("int8,", "one format"),
    ],
)
def test_what_is_no_format_is_refused(text, words):
    with pytest.raises((ConfigError, Unsupported), match=words):
        parse_formats(text)


def test_every_part_gets_its_format(checkpoints):
    program = program_of(checkpoints["untied"], "int4,head=int8,embedding=bf16")
    found = formats(program)
    assert found.pop("head.weight") == "int8" and found.pop("embed.weight") == "bf16"
    assert (
        set(found.values()) == {"q4_0"}
        and "layers.0.attn.q.weight+layers.0.attn.k.weight+layers.0.attn.v.weight" in found
    )
    assert approximations(program) == tuple(f"weights rounded again to {f}" for f in ("bf16", "q4_0", "int8"))
    assert cost.weight_bytes(program) < cost.weight_bytes(program_of(checkpoints["untied"])) / 3


def test_a_tied_table_is_a_head(checkpoints):
    program = program_of(checkpoints["tied"], "int4,head=int8")
    assert roles_of(program)["embed.weight"] == "head" and formats(program)["embed.weight"] == "int8"
    assert formats(program_of(checkpoints["tied"], "head=int8"))["embed.weight"] == "int8"
    with pytest.raises(ConfigError, match="one table"):
        program_of(checkpoints["tied"], "int4,embedding=int8")


@pytest.mark.parametrize("name", [f for f in FORMATS if FORMATS[f].pack_blocks and 96 % FORMATS[f].block == 0])
def test_bytes_are_those_of_packing_what_was_stored(checkpoints, name, monkeypatch):
    monkeypatch.setattr(packing, "_PIECE", 5 * 96)  # 5 rows at a time, which divides nothing
    checkpoint = checkpoints["untied"]
    for w in program_of(checkpoint, name).weights.values():
        if w.constant is not None:
            continue
        stored, raw = checkpoint.read(dataclasses.replace(w, repack="")), checkpoint.read(w)
        if len(w.shape) == 1 or name == "f32":
            assert w.repack == "" and raw.data.tobytes() == stored.data.tobytes()
            continue
        assert w.repack == w.format == raw.format == name and raw.shape == w.shape
        assert raw.data.tobytes() == FORMATS[name].pack(stored.float32()).tobytes()


def test_rows_that_do_not_divide_name_the_weight_and_what_to_use(checkpoints):
    with pytest.raises(Unsupported, match=r"embed.weight \(\d+, 96\).*int4_g64.*use .*int8"):
        program_of(checkpoints["tied"], "int4_g64")


def test_stored_as_asked_is_no_change(checkpoints):
    same = program_of(checkpoints["tied"], "f32")
    assert same == program_of(checkpoints["tied"]) and approximations(same) == ()


def test_columns_are_scaled_before_packing(checkpoints):
    checkpoint = checkpoints["untied"]
    [w] = [w for w in program_of(checkpoint, fused=False).weights.values() if w.name == "layers.0.attn.q.weight"]
    raw = checkpoint.read(w)
    s = np.linspace(0.5, 2, raw.shape[1], dtype=np.float32)
    marked = dataclasses.replace(w, repack="int8", smooth="s")
    got = dataclasses.replace(checkpoint, scales={"s": s}).read(marked)
    assert got.data.tobytes() == FORMATS["int8"].pack(raw.float32() * s).tobytes()


def test_the_key_tells_roundings_apart(checkpoints):
    keys = {
        key(program_of(checkpoints["untied"], spec)) for spec in ("", "int4", "int8", "int4,head=int8", "head=int8")
    }
    assert len(keys) == 5
    assert key(program_of(checkpoints["untied"], "int8")) == key(program_of(checkpoints["untied"], "int8"))


@pytest.mark.parametrize("spec", ["int8", "q8_0,head=int8", "int4_g128"])
def test_random_models_take_every_format(spec):
    """The source is random in the format of the rest; other parts are packed anew from it."""
    opened = open_model(EngineConfig("random:1b", backend="reference", format=spec))
    rest = parse_formats(spec).rest
    assert opened.checkpoint.source.format.name == rest
    found = formats(opened.program)
    assert found["embed.weight"] == parse_formats(spec).head
    assert {f for name, f in found.items() if name != "embed.weight"} == {rest}


def test_a_model_opens_in_the_format_that_was_asked_for(tmp_path):
    config = EngineConfig(str(toy.write(tmp_path / "m")), backend="reference", format="int8")
    program = open_model(config).program
    assert set(formats(program).values()) == {"int8"}
    assert approximations(program) == (
        "weights rounded again to int8",
        "activations two int8 terms in groups of 32, int8 in groups of 32",
    )
    assert Reference.multiplies["int8"] == ("i8", "i8g32", "i8g32x2")
