"""Invariant 7: the bytes and multiply-adds that kernels count in their loops are those of the cost fold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from builds import counting_module

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_counts_equal_the_fold() -> None:
    command = [sys.executable, str(Path(__file__).with_name("counted.py")), str(counting_module())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
