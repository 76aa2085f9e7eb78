"""Fixtures of the command line's tests: a cache of their own, a toy model, commands run in this process."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import toy
from ridgeline.analysis import hardware
from ridgeline.cli import main

PEAKS = hardware.Peaks(2, 200.0, 800.0, ((1 << 20, 60.0), (1 << 28, 30.0)), (85.0, 90.0), "measured 2026-01-01")


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return str(toy.write(tmp_path_factory.mktemp("m") / "toy"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hardware, "measure", lambda threads: PEAKS)
    monkeypatch.setattr(hardware, "barrier", lambda: 85.0)
    monkeypatch.setattr(hardware, "Ceilings", lambda threads, nbytes: SimpleNamespace(now=lambda: PEAKS))
    return tmp_path / "cache" / "ridgeline"


@pytest.fixture
def cli(capsys, cache):
    """Run the command line in this process: exit status, stdout and stderr."""

    def call(*args):
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in args])
        said = capsys.readouterr()
        return SimpleNamespace(code=end.value.code or 0, out=said.out, err=said.err)

    return call
