"""`ridgeline hardware`: what this machine is and can do."""

from __future__ import annotations

from typing import Annotated, Any

from ridgeline.cli.command import Option
from ridgeline.cli.options import AsJson
from ridgeline.cli.output import emit_json, size, table, tell
from ridgeline.config import CacheConfig


def hardware(
    measure: Annotated[bool, Option("Measure the peaks now and keep them.", flag="--measure")] = False,
    json: AsJson = False,
) -> None:
    """Show the machine and its peaks: measured ones where there are any, else assumed ones, labelled so."""
    from ridgeline.analysis import hardware as h

    cache = CacheConfig.from_env().path
    here = h.machine()
    found = h.measure_all(cache) if measure else h.stored(cache)
    peaks = found.peaks if found else (h.peaks(0, cache),)
    if json:
        return emit_json(_record(here, peaks))
    tell(f"{here.cpu}, {here.cores} cores, {size(here.memory)}; {' '.join(here.isa) or 'no known extensions'}")
    tell(f"peaks are {peaks[0].source}" + ("" if found else "; `ridgeline hardware --measure` measures them"))
    rows = [_row(p) for p in peaks]
    table(
        "", ["threads", "int8 Gop/s", "bf16 GFLOP/s", "float32 GFLOP/s", "memory GB/s", "barrier ns", "cores are"], rows
    )
    for p in peaks if found else ():
        sets = ", ".join(f"{size(n)} {gb_s:.1f}" for n, gb_s in p.read)
        tell(f"{p.threads} {'threads read' if p.threads > 1 else 'thread reads'}, GB/s by working set: {sets}")


def _record(here: Any, peaks: Any) -> dict[str, Any]:
    shown = [{**_fields(p), "dram_gb_s": p.dram_gb_s, "state": p.state} for p in peaks]
    return {"cpu": here.cpu, "cores": here.cores, "isa": here.isa, "memory_bytes": here.memory, "peaks": shown}


def _fields(p: Any) -> dict[str, Any]:
    import msgspec

    return msgspec.structs.asdict(p)


def _row(p: Any) -> list[str]:
    barrier = " ".join("-" if ns is None else f"{ns:.0f}" for ns in p.barrier_ns)
    return [
        str(p.threads),
        f"{p.int8_gops:.0f}",
        f"{p.bf16_gflops:.0f}" if p.bf16_gflops else "-",
        f"{p.fp32_gflops:.0f}",
        f"{p.dram_gb_s:.1f}",
        barrier or "-",
        p.state,
    ]
