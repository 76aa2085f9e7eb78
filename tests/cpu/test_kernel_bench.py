"""benchmarks/kernels.py runs, and counts what it says it counts. Its speeds are nobody's assertion."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from ridgeline.backends.cpu.backend import CPU

PATH = Path(__file__).parents[2] / "benchmarks" / "kernels.py"


@pytest.fixture(scope="module")
def kernels():
    spec = importlib.util.spec_from_file_location("benchmarks_kernels", PATH)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    module.SHAPES["tiny"] = (((96, 64), (64, 64), (128, 64), (64, 128)), 2)
    return module


@pytest.mark.parametrize(
    ("format", "activations", "kind"),
    [("q4_1", "", "int8"), ("q8_0", "f32", "f32"), ("f32", "", "f32"), ("bf16", "", "bf16"), ("q4_0", "i8g32", "int8")],
)
def test_figures(kernels, capsys, format, activations, kind):
    options = ["--shape", "tiny", "--format", format, "--activations", activations, "--threads", "2"]
    kernels.main([*options, "--rows", "1,5", "--rounds", "1", "--json"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["kind"] == kind and list(result["rows"]) == ["1", "5"] and result["nbytes"] > 0
    for m, row in result["rows"].items():
        assert set(row) == {"seconds", "gops", "of_peak", "gb_s", "of_load_only"} and all(x > 0 for x in row.values())
        assert row["gops"] * row["seconds"] == pytest.approx(2e-9 * 2 * int(m) * (96 + 64 + 128 + 128) * 64)


def test_for_people(kernels, capsys):
    kernels.main(["--shape", "tiny", "--rows", "3", "--rounds", "1"])
    said = capsys.readouterr().out
    assert "of load-only" in said and "int8 peak" in said and "barrier" in said


def test_only_the_layers_count(kernels):
    case = kernels.build("tiny", 3, "q8_0", "i8g32", CPU(1), 4)
    assert case.nbytes == 3 * (96 + 64 + 128 + 128) * 64 * 34 // 32
    assert case.ops_per_row == 2 * 3 * (96 + 64 + 128 + 128) * 64
