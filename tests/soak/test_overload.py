"""Twenty seconds of `soak.overload`, scaled down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.soak, pytest.mark.alone]
ROOT = Path(__file__).parents[2]


def test_a_crowd_does_no_harm():
    command = [sys.executable, "-m", "soak.overload", "--minutes", "0.25", "--connections", "400", "--places", "16"]
    paths = os.pathsep.join((str(ROOT / "src"), str(ROOT / "tests")))
    env = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([*command, "--step-ms", "40"], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert all(counts["held"].values()) and counts["oversized: 413"] and counts["mute connections that were closed"]
