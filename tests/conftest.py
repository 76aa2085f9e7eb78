"""Fixtures shared by all tests: the backends, and Ctrl-C. And `--once FILE`, for runs that follow each other: what has
passed in one of them is left out of the next ones; what was skipped is not."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from once import Once
from ridgeline.backends.base import Backend


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--once", metavar="FILE", type=Path, help="leave out what this file lists, and add what passes")


def pytest_configure(config: pytest.Config) -> None:
    if (file := config.getoption("--once")) is not None:
        config.pluginmanager.register(Once(file, writes=not hasattr(config, "workerinput")))


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C is heard, here and in processes that are started; whoever started the tests may have had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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
