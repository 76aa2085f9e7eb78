"""Predicted times against hand counts of SmolLM2-135M's shape, and sums that must agree."""

from __future__ import annotations

import pytest

import toy
from ridgeline.analysis import roofline
from ridgeline.analysis.hardware import Peaks
from ridgeline.config import EngineConfig
from ridgeline.engine.load import open_model
from ridgeline.ops.spec import Load
from ridgeline.program import cost

PREFILL, DECODE = Load(((0, 512),), 1), Load(((512, 1),), 1)
FLAT = Peaks(2, 100.0, 400.0, ((1 << 20, 50.0),), (), "assumed")
LAYER = 2 * 576 * 576 + 2 * 192 * 576 + 3 * 1536 * 576  # weights of a layer's matrices
HEAD = 49152 * 576


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy.write_hollow(tmp_path_factory.mktemp("m") / "smollm2", toy.SMOLLM2)


def opened(folder, activations="float32", **settings):
    return open_model(EngineConfig(str(folder), backend="reference", activations=activations, **settings)).program


@pytest.fixture(scope="module")
def program(folder):
    return opened(folder)


def lines(program, load, by="op", peaks=FLAT):
    return {x.name: x for x in roofline.Roofline(program, peaks).table(load, roofline.BY[by])}


def test_parameters_and_bytes(program):
    matrices, norms = HEAD + 30 * LAYER, 61 * 576
    assert cost.parameters(program) == matrices + norms == 134_515_008
    assert cost.weight_bytes(program) == 2 * matrices + 4 * norms + 4 * 32  # bf16, f32 norms, 32 rotary frequencies
    assert cost.kv_token_bytes(program) == 2 * 30 * 3 * 64 * 2 == 23_040


def test_prefill_flops_and_bytes(program):
    found = lines(program, PREFILL)
    assert found["linear"].count == 30 * 4 + 1
    assert found["linear"].cost.flops == 2 * 512 * 30 * LAYER + 2 * HEAD
    assert found["linear"].cost.weight_bytes == 2 * (30 * LAYER + HEAD)
    assert found["attention"].cost.flops == 30 * 4 * 9 * 64 * (512 * 513 // 2)
    assert found["attention"].cost.kv_bytes == 23_040 * (512 + 512)  # read once, written once
    assert found["embedding"].cost.weight_bytes == 512 * 576 * 2


def test_decode_reads_every_matrix_once_and_the_whole_context(program):
    whole = roofline.total(lines(program, DECODE).values())
    assert whole.cost.weight_bytes == 2 * (HEAD + 30 * LAYER) + 4 * 61 * 576 + 4 * 32 + 2 * 576
    assert whole.cost.kv_bytes == 23_040 * (513 + 1)
    assert whole.bound == roofline.MEMORY


def test_times_are_the_longer_of_arithmetic_and_bytes(program):
    found = lines(program, PREFILL)["attention"]
    assert found.bound == roofline.COMPUTE
    assert found.seconds == pytest.approx(found.cost.flops / 100e9)
    found = lines(program, DECODE)["linear"]
    assert found.bound == roofline.MEMORY
    assert found.seconds == pytest.approx(found.cost.bytes / 50e9)
    assert found.intensity == pytest.approx(found.cost.flops / found.cost.bytes)


def test_int8_rows_are_held_to_the_int8_peak(folder, program):
    quantised = lines(opened(folder, "int8", format="q8_0"), PREFILL)
    assert quantised["quantize_act"].count == 30 * 4 + 1
    rows = 2 * 512 * 30 * LAYER
    assert quantised["linear"].seconds < lines(program, PREFILL)["linear"].seconds / 3
    assert quantised["linear"].seconds >= rows / 400e9


def test_the_working_set_decides_the_bandwidth(program):
    cached = Peaks(2, 100.0, 400.0, ((1 << 20, 50.0), (1 << 27, 10.0)), (), "assumed")
    whole = roofline.total(lines(program, DECODE, peaks=cached).values())
    assert whole.seconds > 2 * roofline.total(lines(program, DECODE).values()).seconds


@pytest.mark.parametrize("load", [PREFILL, DECODE, Load(((3, 5), (100, 1)), 0), Load(((0, 7), (64, 3), (9, 1)), 3)])
@pytest.mark.parametrize("by", list(roofline.BY))
def test_every_table_sums_to_the_same_step(program, load, by):
    whole = roofline.total(lines(program, load, by).values())
    expected = cost.total(program, load)
    assert whole.cost.flops == pytest.approx(expected.flops) and whole.cost.bytes == pytest.approx(expected.bytes)
    assert whole.seconds == pytest.approx(roofline.Roofline(program, FLAT).seconds(load))


def test_names_of_lines(program):
    by_layer = list(lines(program, PREFILL, "layer"))
    assert by_layer == ["in", *(f"layers.{i}" for i in range(30)), "out", "sample"]
    by_instr = lines(program, PREFILL, "instr")
    assert len(by_instr) == len(program.instrs) and any("embed.weight:bf16" in name for name in by_instr)
