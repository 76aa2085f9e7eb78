"""`ridgeline roofline MODEL`: what a prefill and a decode step cost, and how long they must take on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from ridgeline.cli.command import Option
from ridgeline.cli.options import ENGINE, AsJson, takes
from ridgeline.cli.output import emit_json, size, table, tell
from ridgeline.config import CacheConfig, EngineConfig
from ridgeline.errors import ConfigError

if TYPE_CHECKING:
    from ridgeline.analysis.roofline import Line, Roofline
    from ridgeline.engine.load import Opened
    from ridgeline.ops.spec import Load

_COLUMNS = ["", "count", "GFLOP", "weights", "KV", "acts", "FLOP/B", "bound", "ms", "%"]


@takes(config=ENGINE)
def roofline(
    config: EngineConfig,
    prefill: Annotated[int, Option("Tokens of the prefill step.", minimum=1)] = 512,
    decode_context: Annotated[int, Option("Keys in the cache before the decode step.", minimum=0)] = 512,
    by: Annotated[str, Option("One line per op, layer or instr.")] = "op",
    json: AsJson = False,
) -> None:
    """Show the cost table of a model's program. No weight is loaded."""
    from ridgeline.analysis import hardware
    from ridgeline.analysis.roofline import BY, Roofline
    from ridgeline.cli.session import fetch
    from ridgeline.engine.load import open_model
    from ridgeline.ops.spec import Load

    if by not in BY:
        raise ConfigError(f"--by {by!r} is not known; choose one of {', '.join(BY)}")
    fetch(config.model)
    opened = open_model(config)
    roof = Roofline(opened.program, hardware.peaks(config.threads, CacheConfig.from_env().path))
    steps = {"prefill": Load(((0, prefill),), 1), "decode": Load(((decode_context, 1),), 1)}
    lines = {name: roof.table(load, BY[by]) for name, load in steps.items()}
    if json:
        return emit_json(_record(opened, config, roof, steps, lines))
    _print(opened, config, roof, steps, lines)


def _record(
    opened: Opened, config: EngineConfig, roof: Roofline, steps: dict[str, Load], lines: dict[str, list[Line]]
) -> dict[str, Any]:
    from ridgeline.program import cost
    from ridgeline.program.approximations import row_types
    from ridgeline.program.dump import program_hash

    record: dict[str, Any] = {
        "model": opened.name,
        "program": program_hash(opened.program),
        "backend": opened.backend.name,
        "activations": row_types(opened.program),
        "kv_format": config.kv_format,
        "parameters": cost.parameters(opened.program),
        "weight_bytes": cost.weight_bytes(opened.program),
        "kv_token_bytes": cost.kv_token_bytes(opened.program),
        "peaks": {**_fields(roof), "source": roof.peaks.source},
    }
    return record | {name: _step(load, lines[name]) for name, load in steps.items()}


def _fields(roof: Roofline) -> dict[str, Any]:
    names = ("threads", "fp32_gflops", "bf16_gflops", "int8_gops", "dram_gb_s")
    return {name: getattr(roof.peaks, name) for name in names}


def _step(load: Load, lines: list[Line]) -> dict[str, Any]:
    from ridgeline.analysis.roofline import total

    whole = total(lines)
    head = {"tokens": load.tokens, "context": load.spans[0][0], "tok_s": load.tokens / whole.seconds}
    return {**head, **_line(whole), "lines": [{"name": x.name, **_line(x)} for x in lines]}


def _line(x: Line) -> dict[str, Any]:
    return {
        "count": x.count,
        "flops": x.cost.flops,
        "weight_bytes": x.cost.weight_bytes,
        "kv_bytes": x.cost.kv_bytes,
        "act_bytes": x.cost.act_bytes,
        "intensity": x.intensity,
        "bound": x.bound,
        "seconds": x.seconds,
    }


def _print(
    opened: Opened, config: EngineConfig, roof: Roofline, steps: dict[str, Load], lines: dict[str, list[Line]]
) -> None:
    from ridgeline.analysis.roofline import total
    from ridgeline.program import cost
    from ridgeline.program.approximations import row_types

    program, p = opened.program, roof.peaks
    tell(
        f"{opened.name}: {cost.parameters(program) / 1e6:.1f} M parameters in {size(cost.weight_bytes(program))}, "
        f"{cost.kv_token_bytes(program):.0f} bytes of KV per token ({config.kv_format}), "
        f"activations {row_types(program)}, backend {opened.backend.name}\n"
        f"peaks ({p.source}), {p.threads} threads: {p.fp32_gflops:.0f} GFLOP/s float32, {p.int8_gops:.0f} Gop/s int8, "
        f"{p.dram_gb_s:.1f} GB/s from memory"
    )
    for name, load in steps.items():
        whole = total(lines[name])
        title = (
            f"{name}: {load.tokens} tokens after {load.spans[0][0]}, at most {load.tokens / whole.seconds:.1f} tok/s"
        )
        table(title, _COLUMNS, [_row(x, whole.seconds) for x in [*lines[name], whole]])


def _row(x: Line, whole: float) -> list[str]:
    c = x.cost
    traffic = [size(c.weight_bytes), size(c.kv_bytes), size(c.act_bytes)]
    rest = [f"{x.intensity:.1f}", x.bound, f"{1e3 * x.seconds:.2f}", f"{100 * x.seconds / whole:.1f}"]
    return [x.name, str(x.count), f"{c.flops / 1e9:.2f}", *traffic, *rest]
