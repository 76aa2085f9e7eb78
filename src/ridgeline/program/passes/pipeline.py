"""The ordered list of passes between capture and compile. Each is named, and the program verified after it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from ridgeline.program.ir import Instr, Program, Weight
from ridgeline.program.passes.formats import bind_formats, bind_kv_format, hold_formats
from ridgeline.program.passes.fuse import fuse
from ridgeline.program.passes.quantize import quantize_activations
from ridgeline.program.verify import verify

Pass = tuple[str, Callable[[Program], Program]]


def passes(
    format_of: Callable[[Weight], str],
    kv_format: str,
    *,
    fused: bool = True,
    held_as: Mapping[str, str] | None = None,
    int8_formats: Collection[str] = (),
) -> list[Pass]:
    """The pipeline for one load.

    `format_of` knows the source; `held_as` is the backend's (None: as stored); linears over `int8_formats` (held
    ones) read int8 rows.
    """
    listed: list[Pass] = [
        ("bind formats", lambda p: bind_formats(p, format_of)),
        ("bind KV format", lambda p: bind_kv_format(p, kv_format)),
    ]
    if fused:
        listed.append(("fuse", fuse))
    if held_as is not None:
        listed.append(("hold formats", lambda p: hold_formats(p, held_as)))
    if int8_formats:
        listed.append(("quantize activations", lambda p: quantize_activations(p, int8_formats)))
    return listed


def run(program: Program, pipeline: list[Pass]) -> Program:
    """Apply the passes in order. An illegal result is reported with the name of the pass that made it."""
    verified: dict[int, Instr] = {}
    verify(program, verified)
    for name, apply in pipeline:
        program = apply(program)
        try:
            verify(program, verified)
        except AssertionError as wrong:
            raise AssertionError(f"after pass {name!r}: {wrong}") from wrong
    return program
