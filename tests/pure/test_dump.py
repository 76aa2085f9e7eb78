"""dump is a table a person can read; the hash changes exactly when the computation does."""

from __future__ import annotations

import dataclasses

import pytest

import tiny
from ridgeline import models
from ridgeline.models.hf import from_hf
from ridgeline.program.dump import dump, line, program_hash, show
from ridgeline.program.ir import CommRef, View
from ridgeline.program.passes import pipeline


def program(name="llama", format="q4_1", kv="bf16", fused=True, **changes):
    c = from_hf(tiny.changed(tiny.CONFIGS[name], **changes))
    listed = pipeline.passes(lambda w: "f32" if len(w.shape) == 1 else format, kv, fused=fused)
    return pipeline.run(models.build(c), listed)


def test_every_instruction_is_one_line():
    p = program("qwen3")
    text = dump(p).splitlines()
    assert len(text) == len(p.instrs) + 4
    assert text[0] == "forward()" and text[len(p.forward.instrs) + 1].startswith("       -> %")
    assert all("# decoder.py:" in x or "# blocks.py:" in x for x in text[1 : len(p.forward.instrs) + 1])
    assert max(map(len, text)) < 260


def test_a_line_says_what_happens():
    p = program()
    text = dump(p)
    first = p.forward.instrs[0]
    assert line(first) == "%0 ['T', 96] = embedding(ids, embed.weight:q4_1, input_row, input_rows) scale=1.0"
    assert "attention(" in text and "kv.0, page_table.kv, kv_slot.kv, kv_len, request, path, span, -, -)" in text
    assert "layers.1.mlp" in text and "layers.1.mlp.gate.weight+layers.1.mlp.up.weight:q4_1" in text
    assert "n_heads=6 scale=0.25 window=0" in text
    merged = next(i for i in p.forward.instrs if "q.weight+" in line(i)).outputs[0]
    assert f"%{merged.id}[0:96]" in text and f"%{merged.id}[96:144]" in text


def test_operands_in_words():
    p = models.build(from_hf(tiny.CONFIGS["llama"]))
    out = p.forward.instrs[0].outputs[0]
    assert show(None) == "-" and show(CommRef("tp", 2)) == "comm.tp"
    assert show(View(out, 0, 96)) == "%0" and show(View(out, 8, 16)) == "%0[8:16]"
    assert show(p.weights["embed.weight"]) == "embed.weight:?"


def test_the_same_model_has_the_same_hash():
    assert program_hash(program()) == program_hash(program())
    assert len(program_hash(program())) == 16
    moved = program()
    instrs = tuple(dataclasses.replace(i, where="elsewhere.py:1") for i in moved.forward.instrs)
    moved = dataclasses.replace(moved, forward=dataclasses.replace(moved.forward, instrs=instrs))
    assert program_hash(moved) == program_hash(program()), "a source line is not part of the computation"


DIFFERENT = {
    "weight format": {"format": "q8_0"},
    "kv format": {"kv": "f32"},
    "fusion": {"fused": False},
    "rope theta": {"rope_theta": 5e5},
    "norm eps": {"rms_norm_eps": 1e-6},
    "layers": {"num_hidden_layers": 3},
    "vocabulary": {"vocab_size": 132},
    "tied": {"tie_word_embeddings": True},
    "bias": {"attention_bias": True},
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_another_computation_has_another_hash(what):
    assert program_hash(program(**DIFFERENT[what])) != program_hash(program())


def test_a_window_changes_the_hash():
    assert program_hash(program("mistral")) != program_hash(program("mistral", sliding_window=25))


def test_results_are_part_of_the_hash():
    p = program()
    entry = dataclasses.replace(p.forward, results=p.forward.results[::-1])
    assert program_hash(dataclasses.replace(p, forward=entry)) != program_hash(p)
