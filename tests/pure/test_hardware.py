"""The machine's description, its measured and assumed peaks, and their file."""

from __future__ import annotations

import json
import math
import subprocess

import msgspec
import pytest

from ridgeline.analysis import hardware, probe
from ridgeline.errors import ConfigError, RidgelineError

READ = ((1 << 20, 80.0), (1 << 22, 40.0), (1 << 24, 20.0))
PEAKS = hardware.Peaks(2, 200.0, 800.0, READ, (85.0, 90.0), "measured 2026-01-01")


@pytest.mark.parametrize(
    ("nbytes", "expected"),
    [(1, 80.0), (1 << 20, 80.0), (1 << 21, 60.0), (1 << 22, 40.0), (1 << 23, 30.0), (1 << 24, 20.0), (1 << 40, 20.0)],
)
def test_bandwidth_of_a_working_set_lies_between_the_measured_ones(nbytes, expected):
    assert PEAKS.read_gb_s(nbytes) == pytest.approx(expected)


def test_memory_bandwidth_is_the_largest_working_set():
    assert PEAKS.dram_gb_s == 20.0


@pytest.mark.parametrize(
    ("handovers", "state"),
    [((85, 90), "together"), ((260, 250), "apart"), ((85, 260), "changing"), ((None, 85), "together"), ((), "unknown")],
)
def test_state(handovers, state):
    assert hardware.state_of(handovers) == state


@pytest.mark.parametrize(("isa", "gain"), [((), 2), (("avx2",), 2), (("avx2", "avx512_vnni"), 4), (("i8mm",), 4)])
def test_assumed_peaks_say_so_and_follow_the_isa(isa, gain):
    found = hardware.assumed(3, isa)
    assert found.source == "assumed" and found.state == "unknown"
    assert found.int8_gops == gain * found.fp32_gflops and found.dram_gb_s > 0


def test_machine_reads_cpuinfo(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nflags\t\t: fpu avx2 avx512_vnni\n\n")
    here = hardware.machine(info)
    assert here.cpu == "Some CPU @ 3 GHz" and here.isa == ("avx2", "avx512_vnni")
    assert here.cores >= 1 and here.memory > 1 << 28


def test_machine_without_cpuinfo(tmp_path):
    assert hardware.machine(tmp_path / "none").isa == ()


def _fake_probe(threads: int) -> dict:
    return {"threads": threads, "fp32_gflops": 50.0, "read": [[1 << 20, 9.0], [1 << 28, 5.0]], "handover_ns": [80, 81]}


def test_a_measurement_is_kept_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "_probe", _fake_probe)
    made = hardware.measure_all(tmp_path / "new")
    assert hardware.stored(tmp_path / "new") == made
    assert made.peaks[0].threads == 1 and made.peaks[-1].threads == hardware.machine().cores
    assert hardware.peaks(1, tmp_path / "new") == made.peaks[0]
    assert hardware.peaks(10_000, tmp_path / "new") == made.peaks[-1]
    assert hardware.peaks(0, tmp_path / "new").source.startswith("measured 2")


def test_a_changing_machine_is_measured_again(monkeypatch):
    states = iter([[80, 260], [260, 80], [255, 260]])
    monkeypatch.setattr(hardware, "_probe", lambda threads: {**_fake_probe(threads), "handover_ns": next(states)})
    assert hardware.measure(1).state == "apart"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: {**d, "cpu": "another"},
        lambda d: {**d, "cores": d["cores"] + 1},
        lambda d: {**d, "peaks": []},
        lambda d: {**d, "unknown": 1},
        lambda d: {**d, "peaks": [{**d["peaks"][0], "fp32_gflops": 0}]},
        lambda d: {**d, "peaks": [{**d["peaks"][0], "read": []}]},
        lambda d: {**d, "peaks": [{**d["peaks"][0], "read": [[1, -5.0]]}]},
        lambda d: "text",
    ],
)
def test_a_file_of_another_machine_or_a_broken_one_is_not_used(tmp_path, monkeypatch, spoil):
    monkeypatch.setattr(hardware, "_probe", _fake_probe)
    made = hardware.measure_all(tmp_path)
    data = json.loads(msgspec.json.encode(made))
    (tmp_path / hardware.FILE).write_text(json.dumps(spoil(data)))
    assert hardware.stored(tmp_path) is None
    assert hardware.peaks(1, tmp_path).source == "assumed"


def test_a_cache_that_cannot_be_written_names_the_setting(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "_probe", _fake_probe)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="XDG_CACHE_HOME"):
        hardware.measure_all(tmp_path / "file")


def test_a_failing_probe_is_a_typed_error(monkeypatch):
    def fail(*args, **kwargs):
        raise subprocess.CalledProcessError(1, "probe")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(RidgelineError, match="could not be measured"):
        hardware.measure(1)


def test_the_probe_measures_something(monkeypatch):
    monkeypatch.setattr(probe, "_ROUND_S", 0.001)
    monkeypatch.setattr(probe, "_GEMM", 64)
    for figure in (probe.read_gb_s(1, 1 << 20), probe.read_gb_s(2, 1 << 20), probe.fp32_gflops(2)):
        assert 0.01 < figure < 1e5 and math.isfinite(figure)


def test_the_hand_over_runs_in_its_child():
    found = hardware.handover()
    assert found is None or 5 < found < probe.BUSY_NS
