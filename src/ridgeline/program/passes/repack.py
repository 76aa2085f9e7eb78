"""repack: choose the format in which each matrix is packed anew when it is read (`--format int4,head=int8`).

Approximate (invariant 6): what is stored is unpacked and rounded once more, which `rounded` tells whoever loads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ridgeline.errors import ConfigError, Unsupported
from ridgeline.program.ir import Program, Weight
from ridgeline.program.passes.rewrite import map_weights
from ridgeline.quant.format import FORMATS, get_format, row_bytes

PARTS = ("embedding", "head", "rest")
STORED = "stored"
_SHORT = {"int4": "q4_0"}
_EXACT = ("f32",)  # holds the values of any other format


@dataclass(frozen=True)
class Formats:
    """A format for each part of a model, "" for as it is stored. `explicit`: parts that were named."""

    embedding: str = ""
    head: str = ""
    rest: str = ""
    explicit: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.embedding or self.head or self.rest)


AS_STORED = Formats()


def parse_formats(text: str) -> Formats:
    """Formats from "int8", "int4,head=int8", "head=q8_0,rest=stored"; ConfigError or Unsupported for anything else.

    A bare name is for every part that is not named. "int4" is q4_0: groups of 32, which divide any usual row.
    """
    every, named = "", {}
    for i, item in enumerate(text.split(",") if text else ()):
        part, equals, name = item.strip().rpartition("=")
        if equals and part not in PARTS:
            raise ConfigError(f"--format {text!r}: {part!r} is no part of a model; parts are {', '.join(PARTS)}")
        if part in named or (not equals and i):
            raise ConfigError(f"--format {text!r}: write one format for all, then PART=FORMAT once for each exception")
        chosen = _format(name)
        if equals:
            named[part] = chosen
        else:
            every = chosen
    return Formats(**{part: named.get(part, every) for part in PARTS}, explicit=tuple(named))


def _format(name: str) -> str:
    if name == STORED:
        return ""
    found = get_format(_SHORT.get(name, name))
    found.packer()  # refuses one that can only be read
    return found.name


def repack(program: Program, formats: Formats) -> Program:
    """Matrices in other formats than chosen get that format, and `repack`. Comes before fusing.

    A table that is embedding and head at once is a head. Unsupported names a weight whose rows the chosen format's
    blocks do not divide.
    """
    roles = roles_of(program)
    tied = any(x.name in _tables(program) for x in _heads(program))
    if tied and formats.embedding != formats.head and "embedding" in formats.explicit:
        raise ConfigError(f"--format: embedding and head are one table in {program.name}; name only the head")

    def choose(w: Weight) -> Weight:
        wanted = getattr(formats, roles[w.name]) if w.name in roles else ""
        if not wanted or wanted == w.format:
            return w
        try:
            row_bytes(FORMATS[wanted], w.shape[-1])
        except Unsupported as why:
            raise Unsupported(f"{w.name} {w.shape}: {why}") from None
        return replace(w, format=wanted, repack=wanted)

    return map_weights(program, choose)


def roles_of(program: Program) -> dict[str, str]:
    """The part of the model that each loaded matrix belongs to."""
    matrices = [w.name for w in program.weights.values() if len(w.shape) > 1 and w.constant is None]
    tables, heads = _tables(program), {w.name for w in _heads(program)}
    return {name: "head" if name in heads else "embedding" if name in tables else "rest" for name in matrices}


def rounded(program: Program) -> tuple[str, ...]:
    """Formats that weights are rounded to a second time, in order of first use."""
    return tuple(dict.fromkeys(w.repack for w in program.weights.values() if w.repack and w.repack not in _EXACT))


def _tables(program: Program) -> set[str]:
    used = (i.operands["table"] for i in program.instrs if i.op == "embedding")
    return {w.name for w in used if isinstance(w, Weight)}


def _heads(program: Program) -> list[Weight]:
    used = (i.operands["w"] for i in program.sample.instrs if i.op == "linear")
    return [w for w in used if isinstance(w, Weight)]
