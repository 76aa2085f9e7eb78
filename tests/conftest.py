"""Fixtures shared by all tests: the backends."""

from __future__ import annotations

import pytest

from ridgeline.backends.base import Backend


@pytest.fixture(params=["reference", "cpu", "torch"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every backend that can be imported here; one that cannot is skipped, saying why."""
    if request.param == "reference":
        from ridgeline.backends.reference import Reference

        return Reference()
    if request.param == "torch":
        pytest.importorskip("torch", reason="torch is not installed (the extra `torch`)")
        from ridgeline.backends.torch_eager import Torch

        return Torch(device="cpu", threads=1)
    try:
        from ridgeline.backends.cpu.backend import CPU
    except ImportError as why:
        pytest.skip(f"the native backend is not built: {why}")
    return CPU(threads=1, isa="")
