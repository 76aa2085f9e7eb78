"""Fixtures shared by all tests: the backends."""

from __future__ import annotations

import pytest

from ridgeline.backends.base import Backend


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every backend that can be imported here; the native one is skipped, saying why, where it is not built."""
    if request.param == "reference":
        from ridgeline.backends.reference import Reference

        return Reference()
    try:
        from ridgeline.backends.cpu.backend import CPU
    except ImportError as why:
        pytest.skip(f"the native backend is not built: {why}")
    return CPU(threads=1, isa="")
