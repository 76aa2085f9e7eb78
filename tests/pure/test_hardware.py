"""The machine's description, its measured and assumed peaks, and their file."""

from __future__ import annotations

import itertools
import json

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
    ("barriers", "state"),
    [((85, 90), "together"), ((260, 250), "apart"), ((85, 260), "changing"), ((None, 85), "together"), ((), "unknown")],
)
def test_state(barriers, state):
    assert hardware.state_of(barriers) == state


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


class FakeProbe:
    """A quiet machine whose barriers take 80 ns, or what a test says."""

    barriers = itertools.repeat(80.0)

    def __init__(self, threads, nbytes=0):
        self.threads = threads

    def read_gb_s(self, nbytes, seconds):
        return 1e9 / nbytes

    def peak_gops(self, kind):
        return {"int8": 400.0, "bf16": 0.0, "f32": 100.0}[kind] * self.threads

    def barrier_ns(self):
        return next(self.barriers)


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(hardware, "Probe", FakeProbe)
    monkeypatch.setattr(hardware, "available_cores", lambda: 2)
    return FakeProbe


@pytest.mark.parametrize("threads", [1, 2, 100])
def test_working_sets_ascend_from_near_caches_to_memory(fake, threads):
    sizes = [nbytes for nbytes, _ in hardware.measure(threads).read]
    assert sizes == sorted(set(sizes)) and sizes[0] == threads << 19 and sizes[-1] >= max(threads << 25, 256 << 20)


def test_measured_peaks_are_the_probes(fake):
    found = hardware.measure(2)
    assert (found.threads, found.int8_gops, found.bf16_gflops, found.fp32_gflops) == (2, 800, 0, 200)
    assert found.barrier_ns == (80, 80) and found.state == "together" and found.dram_gb_s == 1e9 / found.read[-1][0]


def test_a_measurement_is_kept_and_found_again(tmp_path, fake):
    made = hardware.measure_all(tmp_path / "new")
    assert hardware.stored(tmp_path / "new") == made
    assert made.peaks[0].threads == 1 and made.peaks[-1].threads == hardware.machine().cores
    assert hardware.peaks(1, tmp_path / "new") == made.peaks[0]
    assert hardware.peaks(10_000, tmp_path / "new") == made.peaks[-1]
    assert hardware.peaks(0, tmp_path / "new").source.startswith("measured 2")


def test_a_changing_machine_is_measured_again(fake, monkeypatch):
    monkeypatch.setattr(fake, "barriers", iter([80, 260, 260, 80, 255, 260]))
    assert hardware.measure(1).state == "apart"


def test_one_core_has_no_state(fake, monkeypatch):
    monkeypatch.setattr(hardware, "available_cores", lambda: 1)
    assert hardware.measure(1).state == "unknown"


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
def test_a_file_of_another_machine_or_a_broken_one_is_not_used(tmp_path, fake, spoil):
    made = hardware.measure_all(tmp_path)
    data = json.loads(msgspec.json.encode(made))
    (tmp_path / hardware.FILE).write_text(json.dumps(spoil(data)))
    assert hardware.stored(tmp_path) is None
    assert hardware.peaks(1, tmp_path).source == "assumed"


def test_a_cache_that_cannot_be_written_names_the_setting(tmp_path, fake):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="XDG_CACHE_HOME"):
        hardware.measure_all(tmp_path / "file")


def test_memory_or_threads_that_the_system_refuses_are_a_typed_error(monkeypatch):
    def refuse(nbytes):
        raise MemoryError("no room")

    monkeypatch.setattr(probe._native, "Memory", refuse)
    with pytest.raises(RidgelineError, match="could not be measured: no room"):
        probe.load_only(1 << 20, 1)


def test_the_probe_measures_something():
    quick = probe.Probe(2, 1 << 20)
    assert quick.read_gb_s(1 << 20, 0.001) > 0 and quick.peak_gops("f32") > 0
    assert probe.Probe(1).barrier_ns() is None
    assert probe.load_only(1 << 16, 1, 0.001) > 0
    found = hardware.barrier()
    assert found is None or 5 < found < probe.BUSY_NS
