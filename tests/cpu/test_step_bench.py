"""benchmarks/step.py sums what a step's profile gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import toy

PATH = Path(__file__).parents[2] / "benchmarks" / "step.py"


@pytest.mark.parametrize("options", [["--rows", "2", "--context", "5"], ["--tokens", "7", "--context", "0"]])
def test_ops_and_matrices(tmp_path, capsys, options):
    spec = importlib.util.spec_from_file_location("benchmarks_step", PATH)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = str(toy.write(tmp_path / "toy"))
    for by, word in (("op", "attention"), ("weight", "x")):
        module.main([model, *options, "--repeat", "2", "--threads", "2", "--by", by, "--set", "activations=float32"])
        said = capsys.readouterr().out.splitlines()
        assert said[-1].startswith("total") and "work ms" in said[0] and any(word in line for line in said)
        counted = [int(line.split()[-4]) for line in said[1:-1]]
        assert sum(counted) == int(said[-1].split()[1]) > 10
