"""Hostile files: seeded mutations of every kind of model file end in a value or a typed error, soon and small.

`make fuzz` runs the same for longer; a failure here prints how to replay its mutation.
"""

from __future__ import annotations

import json
import sys

import pytest
from run import replay, watch
from work import Meter, Report, TooMuch, random_of, work

COUNTS = {"gguf": 7500, "safetensors": 6000, "config": 6000, "tokenizer": 2500, "template": 1000}
SEED = 20_261


def test_there_are_enough_mutations():
    assert sum(COUNTS.values()) >= 20_000


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory and finds its files as Linux does")
@pytest.mark.parametrize("target", COUNTS)
def test_every_mutation_is_read_or_refused(target):
    report = watch(target, SEED, 0, COUNTS[target])
    first = report.failures[0]["number"] if report.failures else 0
    replay_by = f"python tests/fuzz/run.py {target} --seed {SEED} --start {first} --count 1"
    shown = json.dumps(report.failures, indent=1)
    assert not report.failures, f"{dict(report.failed)}; replay with: {replay_by}\n{shown}"
    assert report.mutations == COUNTS[target]
    assert report.outcomes["accepted"] > COUNTS[target] // 50, "too little gets past the first checks"


# --- the fuzzer itself: what it must notice


class Planted:
    """A target that misbehaves at known numbers."""

    def __init__(self, scratch):
        pass

    def mutate(self, rng):
        return rng.random()

    def parse(self, data):
        return 0.0

    def corpus(self):
        return []

    def run(self, case, check):
        raise NotImplementedError


@pytest.fixture
def planted(monkeypatch, tmp_path):
    """Runs ten mutations of a target that does what it is told, in this process."""

    def run(action) -> Report:
        import work as module

        monkeypatch.setattr(module, "load", lambda name, scratch: type("T", (Planted,), {"run": action})(scratch))
        monkeypatch.setattr(module, "_limit_memory", lambda room: None)
        status = tmp_path / "status"
        status.write_bytes(bytes(16))
        return work("gguf", 1, 0, 10, status)

    return run


def test_an_untyped_error_is_a_failure(planted):
    def action(self, case, check):
        {}[case]

    report = planted(action)
    assert report.outcomes == {"KeyError": 10} and report.failed == {"KeyError at no line of ours": 10}
    assert [f["number"] for f in report.failures] == [0, 1, 2]


def test_a_large_allocation_is_a_failure_where_it_is_measured(planted):
    def action(self, case, check):
        kept = bytearray(3 << 20)
        check("reading", 2 << 20)
        del kept

    report = planted(action)
    assert report.outcomes == {"TooMuch": 1, "accepted": 9} and report.peak_bytes > 3 << 20
    assert "the bound is" in report.failures[0]["what"]


def test_a_memory_error_behind_a_typed_one_is_a_failure(planted):
    from ridgeline.errors import TemplateError

    def action(self, case, check):
        try:
            raise MemoryError
        except MemoryError as error:
            raise TemplateError("failed") from error

    assert planted(action).failed == {"MemoryError behind TemplateError": 10}


@pytest.mark.parametrize("code", ["os.abort()", "time.sleep(99)"], ids=["crash", "hang"])
def test_a_crash_or_a_hang_names_its_mutation(tmp_path, monkeypatch, code):
    import run as module

    child = tmp_path / "child.py"
    child.write_text(
        "import os, struct, sys, time\n"
        "status = next(a for a in sys.argv if a.startswith('--child='))[8:]\n"
        "open(status, 'wb').write(struct.pack('<Qd', 7, time.monotonic()))\n"
        f"{code}\n"
    )
    monkeypatch.setattr(module, "__file__", str(child))
    monkeypatch.setattr(module, "HANGS_S", 0.5)
    report = module._chunk("gguf", 1, 5, 10)
    assert report.failures[0]["number"] == 7 and report.mutations == 3


def test_a_mutation_can_be_replayed(capsys):
    assert random_of(1, 2).random() == random_of(1, 2).random() != random_of(2, 1).random()
    replay("config", SEED, 3)
    first = capsys.readouterr().out
    replay("config", SEED, 3)
    assert capsys.readouterr().out == first and first.startswith("Case(")


def test_the_meter_keeps_the_worst():
    meter = Meter()
    for phase, size, bound in (("a", 3 << 20, 4 << 20), ("b", 1 << 20, 2 << 20)):
        meter.start()
        kept = bytearray(size)
        meter.check(phase, bound)
        with pytest.raises(TooMuch, match=f"{phase} allocated"):
            meter.check(phase, len(kept) // 2)
        meter.stop()
    assert meter.peak >= 3 << 20 and meter.phase == "a"
