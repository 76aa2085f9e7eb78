"""`ridgeline bench`: what its record holds, and that its arithmetic is what it says. No speed is asserted."""

from __future__ import annotations

import random

import numpy as np
import pytest

import toy
from commands import only_json, refused
from ridgeline.analysis.hardware import Peaks
from ridgeline.analysis.roofline import Roofline
from ridgeline.errors import ConfigError
from ridgeline.llm import LLM
from ridgeline.ops.spec import Load
from ridgeline.program import cost
from ridgeline.tools import bench, traffic
from ridgeline.tools.timing import Timing

SETTINGS = {"backend": "reference", "activations": "float32", "kv_format": "f32", "max_requests": 4, "step_tokens": 16}
PEAKS = Peaks(2, 200.0, 800.0, ((1 << 20, 60.0), (1 << 28, 30.0)), (85.0, 90.0), "measured 2026-01-01")
SHORT = ("--prefill", 20, "--decode", 2, "--rounds", 1)


@pytest.fixture
def llm(model):
    return LLM(model, **SETTINGS)


def test_json(cli, model):
    options = ["--prefill", 40, "--decode", 8, "--threads", 2, "--rounds", 3, "--json", *toy.REFERENCE]
    record = only_json(cli("bench", model, *options))
    for key in (
        "prefill_tok_s", "decode_tok_s", "model_bytes", "rss_mb", "first_token_s", "load_s", "import_s", "threads",
    ):  # fmt: skip
        assert record[key] > 0, key
    assert set(record["attainment"]) == {"prefill", "decode"} and all(x > 0 for x in record["attainment"].values())
    assert len(record["decode_tok_s_all"]) == len(record["attainment_all"]["decode"]) == record["rounds"] == 3
    assert (record["format"], record["activations"], record["backend"]) == ("f32", "float32", "reference")
    assert record["concurrency"] == {} == record["batch"] and record["overhead_ms"] is None and record["cpu"]
    state = record["machine_state"]
    assert state["cores"] == state["cores_before"] == state["cores_after"] == "together"
    assert (state["load_only_gb_s"], state["dram_gb_s"], len(state["load_only_gb_s_all"])) == (60, 30, 4)
    assert len(state["barrier_ns"]) == 8 and (state["int8_gops"], state["fp32_gflops"]) == (800, 200)


def test_company(cli, model):
    options = ["--concurrency", "1,3", "--batch", "2", "--prompt-length", 5, "--answer-length", 4, "--repeats", 2]
    record = only_json(cli("bench", model, *SHORT, *options, "--json", *toy.REFERENCE))
    assert list(record["concurrency"]) == ["1", "3"] and list(record["batch"]) == ["2"]
    for x in record["concurrency"].values():
        assert set(x) == {"output_tok_s", "ttft_ms_p50", "itl_ms_p50", "itl_ms_p99"} and all(v > 0 for v in x.values())
    assert set(record["batch"]["2"]) == {"step_ms", "step_tok_s", "prefill_s", "aggregate_tok_s"}
    assert record["request"] == {"prompt": 5, "answer": 4, "repeats": 2}


def test_for_people(cli, model):
    options = ("--concurrency", "2", "--batch", "2", "--prompt-length", 3, "--answer-length", 2)
    done = cli("bench", model, *SHORT, *options, *toy.REFERENCE)
    assert done.code == 0 and "cores together (before together, after together" in done.err
    for word in ("prefill 20:", "decode 2:", "attainment", "peak memory", "overhead n/a", "2 requests of 3 + 2 tokens",
                 "2 rows of 3 + 2 tokens in lock-step"):  # fmt: skip
        assert word in done.out


def test_the_cpu_backend_has_an_overhead(cli, model):
    record = only_json(cli("bench", model, *SHORT, "--json"))
    assert record["overhead_ms"] > 0 and record["backend"] == "cpu"


@pytest.mark.parametrize("counts", ["0", "x", "1,-2", "1,5000", "1.5"])
def test_bad_counts(cli, model, counts):
    done = cli("bench", model, "--concurrency", counts)
    assert done.code == 2 and "counts" in done.err


def test_rows_that_do_not_fit(cli, model, llm):
    refused(cli("bench", model, *SHORT, "--batch", "2", "--prompt-length", 250, *toy.REFERENCE), "378 tokens")
    with pytest.raises(ConfigError, match="5 rows"):
        traffic.lock_step(llm, 5, 3, 2, random.Random(0))
    small = LLM(model, **SETTINGS, kv_memory=3 * llm.info.page_bytes)
    with pytest.raises(ConfigError, match="KV pages; raise --kv-memory"):
        traffic.lock_step(small, 4, 3, 2, random.Random(0))


def test_attainment_is_arithmetic_at_peak_and_bytes_at_load_only_speed(llm):
    prefill, decode = Load(((0, 16),), 1), [Load(((16 + i, 1),), 1) for i in range(3)]
    done = bench.Round(
        PEAKS, Timing(16, 1, 0.5, 0, (prefill,), (), "length"), Timing(16, 4, 1, 0.25, (), tuple(decode), "length")
    )
    found = done.attainment(llm.program)
    assert found["prefill"] == pytest.approx(cost.total(llm.program, prefill).flops / 200e9 / 0.5)
    steps = [cost.total(llm.program, load) for load in decode]
    nbytes = [x.weight_bytes + x.kv_bytes for x in steps]
    assert Roofline(llm.program, PEAKS).stream_bytes(decode[0]) == pytest.approx(nbytes[0])
    assert found["decode"] == pytest.approx(sum(n / (PEAKS.read_gb_s(n) * 1e9) for n in nbytes) / 0.25)


@pytest.mark.parametrize("rows", [1, 3])
def test_lock_step_computes_what_the_engine_does(llm, rows):
    """The same prompts give the same tokens, however they were cut into steps."""
    seen = []
    run = llm.step.run
    llm.step.run = lambda batch: seen.append((batch.size("T"), run(batch))) or seen[-1][1]
    done = traffic.lock_step(llm, rows, 21, 6, random.Random(3))
    llm.step.run = run
    assert len(done.decode_s) == 5 and [t for t, _ in seen[-5:]] == [rows] * 5
    assert sum(t for t, _ in seen[:-5]) == 21 * rows and max(t for t, _ in seen) <= 16
    rng = random.Random(3)
    prompts = [bench.prompt_of(llm, 21, rng) for _ in range(rows)]
    tokens = [[t.id for t in o.completions[0].tokens] for o in llm.generate(prompts, bench.greedy(6))]
    assert np.array_equal([r.ids for _, r in seen[-5:]], np.array(tokens)[:, 1:].T)


def test_quantiles():
    assert [traffic.quantile([3, 1, 2], p) for p in (0.01, 0.5, 0.99)] == [1, 2, 3] and traffic.quantile([], 0.5) == 0


def test_concurrent_requests(llm):
    done = traffic.concurrent(llm, 3, 5, 4, random.Random(0))
    assert done.tokens == 12 and len(done.ttft_s) == 3 and len(done.itl_s) == 9
    assert max(done.ttft_s) <= done.seconds and min(done.itl_s) >= 0
