"""Attainment of a running engine: which steps are looked at, what is said of them, and where nothing is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import toy
from ridgeline.analysis import attainment, hardware
from ridgeline.analysis.attainment import Attainment, watch
from ridgeline.config import EngineConfig
from ridgeline.engine.client import LocalClient
from ridgeline.engine.engine import Flight
from ridgeline.engine.load import load
from ridgeline.engine.params import SamplingParams
from ridgeline.ops.spec import Load

CHUNKS = [SimpleNamespace(start=0, count=7), SimpleNamespace(start=30, count=1)]


class Engine:
    """A clock and a counter."""

    def __init__(self) -> None:
        self.now = 100.0
        self.scheduler = SimpleNamespace(counters=SimpleNamespace(attainment=0.0))

    def clock(self) -> float:
        return self.now


def step(engine: Engine, seen: Attainment, seconds: float) -> float:
    flight = Flight(1, CHUNKS, [None, None], engine.now)
    engine.now += seconds
    seen(flight, None)
    return engine.scheduler.counters.attainment


def test_predicted_over_measured_seconds_of_steps_now_and_then():
    engine, loads = Engine(), []

    def seconds(load: Load) -> float:
        loads.append(load)
        engine.now += 0.0001
        return 0.02

    seen = Attainment(SimpleNamespace(seconds=seconds), engine)
    assert step(engine, seen, 0.04) == pytest.approx(0.5)
    assert loads == [Load(((0, 7), (30, 1)), 2)]
    assert step(engine, seen, 0.3) == pytest.approx(0.5)  # it began too soon after the first
    assert step(engine, seen, 0.06) == pytest.approx(0.04 / 0.1) and len(loads) == 2
    for _ in range(1000):
        step(engine, seen, 0.02)
    assert len(loads) == pytest.approx(1000 * 0.02 / 0.25, rel=0.1)
    assert engine.scheduler.counters.attainment == pytest.approx(1.0)  # the first ones are forgotten


def test_looking_takes_a_small_part_of_the_time():
    engine, looks = Engine(), []

    def slow(load: Load) -> float:
        looks.append(load)
        engine.now += 0.01
        return 0.001

    seen = Attainment(SimpleNamespace(seconds=slow), engine)
    for _ in range(1000):
        step(engine, seen, 0.02)
    assert len(looks) * 0.01 < 0.01 * 1000 * 0.02


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return str(toy.write(tmp_path / "toy"))


def test_without_measured_peaks_nothing_is_said(model, monkeypatch):
    reference = load(EngineConfig(model, backend="reference", kv_memory=64 << 20))
    assert watch(reference) is None
    measured = hardware.Peaks(1, 100.0, 200.0, ((1 << 28, 10.0),), (), "measured today")
    monkeypatch.setattr(attainment.hardware, "peaks", lambda threads, cache: measured)
    assert watch(reference) is None  # the peaks are of the processor, not of numpy


def test_an_engine_says_what_it_reaches(model, monkeypatch):
    pytest.importorskip("ridgeline.backends.cpu._native", reason="the native module is not built")
    loaded = load(EngineConfig(model, threads=1, kv_memory=64 << 20))
    assert watch(loaded) is None  # not measured
    measured = hardware.Peaks(1, 100.0, 200.0, ((1 << 28, 10.0),), (), "measured today")
    monkeypatch.setattr(attainment.hardware, "peaks", lambda threads, cache: measured)
    loaded.engine.observe = watch(loaded)
    client = LocalClient(loaded.engine)
    client.submit([1, 2, 3], SamplingParams(max_tokens=20, ignore_eos=True), lambda delta: None)
    while not client.idle:
        client.pump()
    assert 0 < client.ledger.last.counters.attainment < 1
