"""`ridgeline bench MODEL`: how fast a model runs here, and how near its roofline."""

from __future__ import annotations

import importlib
import os
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ridgeline.cli.options import ENGINE, AsJson, takes
from ridgeline.cli.output import emit_json, percent, say, size, tell
from ridgeline.config import EngineConfig, available_cores

if TYPE_CHECKING:
    from ridgeline.analysis.hardware import Peaks
    from ridgeline.llm import LLM


@takes(config=ENGINE)
def bench(
    config: EngineConfig,
    prefill: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 512,
    decode: Annotated[int, typer.Option(min=1, help="Tokens to decode.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; medians are reported.")] = 3,
    json: AsJson = False,
) -> None:
    """Measure prefill and decode speed in this process, then the machine's own peaks, in the same minute."""
    begin = time.perf_counter()
    importlib.import_module("ridgeline.llm")
    from ridgeline.cli.session import open_llm

    imported = time.perf_counter()
    llm = open_llm(replace(config, max_requests=1, threads=config.threads or available_cores()), notes=not json)
    cold = {"import_s": imported - begin, "load_s": time.perf_counter() - imported}
    result = _measure(llm, prefill, decode, rounds, cold)
    if json:
        return emit_json(result)
    _print(result)


def _measure(llm: LLM, prefill: int, decode: int, rounds: int, cold: dict[str, float]) -> dict[str, Any]:
    from ridgeline.analysis import hardware
    from ridgeline.analysis.roofline import Roofline
    from ridgeline.tools import bench as tool

    tool.first_token(llm)  # the load is over when the first token is there
    cold["first_token_s"] = since_start()
    before = hardware.handover()
    done = tool.bench(llm, prefill, decode, rounds)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    peaks = hardware.measure(llm.config.threads)
    info = llm.info
    return {
        "model": info.model, "backend": info.backend, "format": info.format, "activations": info.activations,
        "kv_format": info.kv_format, "threads": llm.config.threads, "program": info.program,
        "prefill": prefill, "decode": decode, "rounds": rounds,
        "prefill_tok_s": done.prefill_tok_s, "decode_tok_s": done.decode_tok_s,
        "prefill_tok_s_all": [t.prefill_tok_s for t in done.prefill],
        "decode_tok_s_all": [t.decode_tok_s for t in done.decode],
        "attainment": done.attainment(Roofline(llm.program, peaks)),
        "model_bytes": info.weight_bytes, "rss_mb": rss / 1e6, **cold,
        "cpu": hardware.machine().cpu, "machine_state": _state(before, peaks),
    }  # fmt: skip


def _state(before: float | None, peaks: Peaks) -> dict[str, Any]:
    """What the machine could do in the same minute; figures taken in two states must not be compared."""
    from ridgeline.analysis.hardware import state_of

    handovers = (before, *peaks.handover_ns)
    return {
        "cores": state_of(handovers),
        "handover_ns": handovers,
        "dram_gb_s": peaks.dram_gb_s,
        "fp32_gflops": peaks.fp32_gflops,
    }


def since_start() -> float:
    """Seconds since this process started, as the kernel has it; 0 where that is not known."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return 0.0
    ticks = int(stat.read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _print(r: dict[str, Any]) -> None:
    reached, state = r["attainment"], r["machine_state"]
    say(f"{r['cpu']}, {r['threads']} threads; cores {state['cores']}, "
        f"memory {state['dram_gb_s']:.1f} GB/s, float32 {state['fp32_gflops']:.0f} GFLOP/s")  # fmt: skip
    tell(
        f"{r['model']} {r['format']}, activations {r['activations']}, {size(r['model_bytes'])}, {r['backend']}\n"
        f"prefill {r['prefill']}: {r['prefill_tok_s']:.1f} tok/s, attainment {percent(reached['prefill'])}\n"
        f"decode {r['decode']}: {r['decode_tok_s']:.1f} tok/s, attainment {percent(reached['decode'])}\n"
        f"first token {r['first_token_s']:.2f} s after start (import {r['import_s']:.2f}, load {r['load_s']:.2f}), "
        f"peak memory {r['rss_mb']:.0f} MB"
    )
