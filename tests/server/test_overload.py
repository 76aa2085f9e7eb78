"""`benchmarks/overload.py` with a toy model: far more clients than places, in a cgroup where one can be made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import toy

pytestmark = [pytest.mark.soak, pytest.mark.alone]
ROOT = Path(__file__).parents[2]


def test_what_is_accepted_ends_and_the_rest_is_told_when_to_come(tmp_path):
    pytest.importorskip("ridgeline.backends.cpu._native", reason="the native module is not built")
    config = {**toy.CONFIG, "max_position_embeddings": 8192}
    command = [sys.executable, str(ROOT / "benchmarks" / "overload.py"), str(toy.write(tmp_path / "toy", config))]
    options = ["--clients", "80", "--places", "2", "--seconds", "4", "--", "--threads", "1", "--packed-cache", "0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=env, check=False)
    record = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and record["held"] and not record["faults"], record
    assert record["accepted"] > 4 and record["refused with 429"] > record["accepted"]
    assert record["limit_mb"] == 1024 and 0 < record["peak_anon_mb"] < 1024
