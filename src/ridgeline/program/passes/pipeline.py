"""The ordered list of passes between capture and compile. Each is named, and the program verified after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from ridgeline.program.ir import Instr, Program, Weight
from ridgeline.program.passes.formats import bind_formats, bind_kv_format, hold_formats
from ridgeline.program.passes.fuse import fuse
from ridgeline.program.passes.quantize import Multiplies, quantize_activations
from ridgeline.program.passes.repack import AS_STORED, Formats, repack
from ridgeline.program.passes.smooth import smooth
from ridgeline.program.verify import verify

Pass = tuple[str, Callable[[Program], Program]]


def passes(
    format_of: Callable[[Weight], str],
    kv_format: str,
    *,
    fused: bool = True,
    held_as: Mapping[str, str] | None = None,
    multiplies: Multiplies = MappingProxyType({}),
    activations: str = "auto",
    formats: Formats = AS_STORED,
    smoothing: str = "",
) -> list[Pass]:
    """The pipeline for one load.

    `format_of` knows the source, `formats` what it is packed anew in; `smoothing` labels calibrated scales ("": none).
    `held_as` (None: as stored) and `multiplies` (rows that linears over held formats may read) are the backend's.
    """
    listed: list[Pass] = [
        ("bind formats", lambda p: bind_formats(p, format_of)),
        ("bind KV format", lambda p: bind_kv_format(p, kv_format)),
    ]
    if formats:
        listed.append(("repack", lambda p: repack(p, formats)))
    if smoothing:
        listed.append(("smooth", lambda p: smooth(p, smoothing)))
    if fused:
        listed.append(("fuse", fuse))
    if held_as is not None:
        listed.append(("hold formats", lambda p: hold_formats(p, held_as)))
    if multiplies:
        listed.append(("quantize activations", lambda p: quantize_activations(p, multiplies, activations)))
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
