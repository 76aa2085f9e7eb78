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
    table("", ["threads", "float32 GFLOP/s", "int8 Gop/s (derived)", "memory GB/s", "hand-over ns", "cores are"], rows)


def _record(here: Any, peaks: Any) -> dict[str, Any]:
    shown = [{**_fields(p), "dram_gb_s": p.dram_gb_s, "state": p.state} for p in peaks]
    return {"cpu": here.cpu, "cores": here.cores, "isa": here.isa, "memory_bytes": here.memory, "peaks": shown}


def _fields(p: Any) -> dict[str, Any]:
    import msgspec

    return msgspec.structs.asdict(p)


def _row(p: Any) -> list[str]:
    handover = " ".join("-" if ns is None else f"{ns:.0f}" for ns in p.handover_ns)
    return [
        str(p.threads),
        f"{p.fp32_gflops:.0f}",
        f"{p.int8_gops:.0f}",
        f"{p.dram_gb_s:.1f}",
        handover or "-",
        p.state,
    ]
