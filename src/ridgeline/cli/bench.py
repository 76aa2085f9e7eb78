"""`ridgeline bench MODEL`: how fast a model runs here, alone and in company, and how near its ceilings."""

from __future__ import annotations

import importlib
import os
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ridgeline.cli.command import BadParameter, Option
from ridgeline.cli.options import ENGINE, AsJson, takes
from ridgeline.cli.output import emit_json, percent, say, size, tell
from ridgeline.config import EngineConfig
from ridgeline.cores import available_cores

if TYPE_CHECKING:
    from ridgeline.analysis.hardware import Peaks
    from ridgeline.llm import LLM


@dataclass(frozen=True)
class _Work:
    """What to measure."""

    prefill: int
    decode: int
    rounds: int
    concurrency: list[int]
    batch: list[int]
    prompt: int  # of a request of concurrency and batch
    answer: int
    repeats: int  # of concurrency and batch


def parse_counts(text: str) -> list[int]:
    """Positive whole numbers of "1,4,16"; none of ""."""
    words = [word.strip() for word in str(text).split(",") if word.strip()]
    if not all(word.isascii() and word.isdigit() and 0 < int(word) <= 4096 for word in words):
        raise BadParameter(f"{text!r} is not a list of counts up to 4096; write for instance 1,4,16")
    return [int(word) for word in words]


@takes(config=ENGINE)
def bench(
    config: EngineConfig,
    prefill: Annotated[int, Option("Tokens of the prompt.", minimum=1)] = 512,
    decode: Annotated[int, Option("Tokens to decode.", minimum=1)] = 128,
    rounds: Annotated[int, Option("Rounds; medians are reported.", minimum=1)] = 5,
    concurrency: Annotated[
        Any, Option("Requests submitted at once, such as 1,4,16,32.", metavar="N,...", parser=parse_counts)
    ] = "",
    batch: Annotated[
        Any, Option("Rows decoded in lock-step, without the engine.", metavar="N,...", parser=parse_counts)
    ] = "",
    prompt_length: Annotated[int, Option("Prompt of each of these requests and rows.", minimum=1)] = 128,
    answer_length: Annotated[int, Option("Answer of each of these requests and rows.", minimum=2)] = 128,
    repeats: Annotated[int, Option("Rounds of --concurrency and --batch; medians.", minimum=1)] = 1,
    json: AsJson = False,
) -> None:
    """Measure prefill and decode speed in this process, each round beside the machine's ceilings in the same minute."""
    work = _Work(prefill, decode, rounds, concurrency, batch, prompt_length, answer_length, repeats)
    begin = time.perf_counter()
    importlib.import_module("ridgeline.llm")
    from ridgeline.cli.session import open_llm

    imported = time.perf_counter()
    most = max([1, *work.concurrency, *work.batch])
    settled = replace(config, max_requests=most, threads=config.threads or available_cores())
    llm = open_llm(settled, notes=not json)
    cold = {"import_s": imported - begin, "load_s": time.perf_counter() - imported}
    result = _measure(llm, work, cold)
    if json:
        return emit_json(result)
    _print(result)


def _measure(llm: LLM, work: _Work, cold: dict[str, float]) -> dict[str, Any]:
    from ridgeline.analysis import hardware
    from ridgeline.tools import bench as tool

    tool.first_token(llm)  # the load is over when the first token is there
    cold["first_token_s"] = since_start()
    tool.warm_up(llm, work.prefill)
    rss = _peak_rss()  # before the ceilings take memory of their own
    ceilings = hardware.Ceilings(llm.config.threads, int(tool.decode_bytes(llm, work.decode)))
    done = tool.bench(llm, work.prefill, work.decode, work.rounds, ceilings.now)
    attainments = done.attainments(llm.program)
    company = _company(llm, work)
    peaks = [*(r.ceilings for r in done.rounds), ceilings.now()]
    info = llm.info
    return {
        "model": info.model, "backend": info.backend, "format": info.format, "activations": info.activations,
        "kv_format": info.kv_format, "threads": llm.config.threads, "program": info.program,
        "prefill": work.prefill, "decode": work.decode, "rounds": work.rounds,
        "prefill_tok_s": done.prefill_tok_s, "decode_tok_s": done.decode_tok_s,
        "prefill_tok_s_all": [r.prefill.prefill_tok_s for r in done.rounds],
        "decode_tok_s_all": [r.decode.decode_tok_s for r in done.rounds],
        "attainment": {phase: statistics.median(found) for phase, found in attainments.items()},
        "attainment_all": attainments, "overhead_ms": done.overhead_ms, **company,
        "model_bytes": info.weight_bytes, "rss_mb": rss / 1e6, **cold,
        "cpu": hardware.machine().cpu, "machine_state": _state(peaks),
    }  # fmt: skip


def _company(llm: LLM, work: _Work) -> dict[str, Any]:
    """Requests at once and rows in lock-step, by their number: medians of the repeats."""
    from ridgeline.tools import traffic

    def medians(counts: Sequence[int], run: Callable[..., Any]) -> dict[int, dict[str, float]]:
        rng = random.Random(2)
        found = [{n: run(llm, n, work.prompt, work.answer, rng).record() for n in counts} for _ in range(work.repeats)]
        return {n: {key: statistics.median(f[n][key] for f in found) for key in found[0][n]} for n in counts}

    return {
        "request": {"prompt": work.prompt, "answer": work.answer, "repeats": work.repeats},
        "concurrency": medians(work.concurrency, traffic.concurrent),
        "batch": medians(work.batch, traffic.lock_step),
    }


def _state(peaks: Sequence[Peaks]) -> dict[str, Any]:
    """What the machine could do in the same minutes; figures taken in two states must not be compared."""
    from ridgeline.analysis.hardware import state_of

    barriers = [ns for p in peaks for ns in p.barrier_ns]
    return {
        "cores": state_of(barriers), "cores_before": peaks[0].state, "cores_after": peaks[-1].state,
        "barrier_ns": barriers, "load_only_bytes": peaks[0].read[0][0],
        "load_only_gb_s": statistics.median(p.read[0][1] for p in peaks),
        "load_only_gb_s_all": [p.read[0][1] for p in peaks],
        "dram_gb_s": statistics.median(p.dram_gb_s for p in peaks),
        "int8_gops": max(p.int8_gops for p in peaks), "bf16_gflops": max(p.bf16_gflops for p in peaks),
        "fp32_gflops": max(p.fp32_gflops for p in peaks),
    }  # fmt: skip


def since_start() -> float:
    """Seconds since this process started, as the kernel has it; 0 where that is not known."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return 0.0
    ticks = int(stat.read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _peak_rss() -> int:
    """Bytes of memory this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _print(r: dict[str, Any]) -> None:
    reached, state = r["attainment"], r["machine_state"]
    barriers = " ".join("-" if ns is None else f"{ns:.0f}" for ns in state["barrier_ns"])
    say(f"{r['cpu']}, {r['threads']} threads; cores {state['cores']} (before {state['cores_before']}, after "
        f"{state['cores_after']}; barrier {barriers} ns)")  # fmt: skip
    say(f"loading {size(state['load_only_bytes'])} {state['load_only_gb_s']:.1f} GB/s, memory "
        f"{state['dram_gb_s']:.1f} GB/s; int8 {state['int8_gops']:.0f}, bf16 {state['bf16_gflops']:.0f}, "
        f"float32 {state['fp32_gflops']:.0f} G/s")  # fmt: skip
    overhead = "n/a" if r["overhead_ms"] is None else f"{r['overhead_ms']:.3f} ms"
    tell(
        f"{r['model']} {r['format']}, activations {r['activations']}, {size(r['model_bytes'])}, {r['backend']}\n"
        f"prefill {r['prefill']}: {r['prefill_tok_s']:.1f} tok/s, attainment {percent(reached['prefill'])}\n"
        f"decode {r['decode']}: {r['decode_tok_s']:.1f} tok/s, attainment {percent(reached['decode'])}\n"
        f"engine overhead {overhead} a step at one row\n"
        f"first token {r['first_token_s']:.2f} s after start (import {r['import_s']:.2f}, load {r['load_s']:.2f}), "
        f"peak memory {r['rss_mb']:.0f} MB"
    )
    lengths = f"{r['request']['prompt']} + {r['request']['answer']} tokens"
    for n, x in r["concurrency"].items():
        tell(f"{n} requests of {lengths}: {x['output_tok_s']:.1f} tok/s, first token p50 {x['ttft_ms_p50']:.0f} ms, "
             f"between tokens p50 {x['itl_ms_p50']:.1f} ms, p99 {x['itl_ms_p99']:.1f} ms")  # fmt: skip
    for n, x in r["batch"].items():
        tell(f"{n} rows of {lengths} in lock-step: {x['step_tok_s']:.1f} tok/s ({x['step_ms']:.2f} ms a step), "
             f"with the prefill {x['aggregate_tok_s']:.1f} tok/s")  # fmt: skip
