"""The roofline of a program: how long each instruction must take at least, on given peaks.

An instruction takes the longer of its arithmetic at peak and its bytes at the speed of the memory they come from:
weights and KV at that of the whole step's working set (a small model partly lives in caches), activations at that of
the instruction's own. Reads the final program through the cost fold, so nothing here describes a model again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ridgeline.analysis.hardware import Peaks
from ridgeline.ops.spec import Cost, Load
from ridgeline.program.cost import instr_cost, weight_nbytes
from ridgeline.program.dump import show
from ridgeline.program.ir import Instr, Operand, Program, StateRef, View, Weight

MEMORY, COMPUTE = "memory", "compute"


@dataclass(frozen=True)
class Line:
    """One row of the table: `count` instructions, their cost, and predicted seconds, of which bound by compute."""

    name: str
    count: int
    cost: Cost
    seconds: float
    compute_seconds: float

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.cost.flops / self.cost.bytes if self.cost.bytes else 0.0

    @property
    def bound(self) -> str:
        """What most of the time is spent waiting for."""
        return COMPUTE if self.compute_seconds * 2 > self.seconds else MEMORY


class Roofline:
    """A program on a machine. Layers repeat, so equal instructions are counted and costed once."""

    def __init__(self, program: Program, peaks: Peaks) -> None:
        self.program, self.peaks = program, peaks
        self._forward = _alike(program.forward.instrs)
        self._sample = _alike(program.sample.instrs)

    def seconds(self, load: Load) -> float:
        """Predicted seconds of one step."""
        costed = self._costed(load)
        stream = self.peaks.read_gb_s(sum(n * (c.weight_bytes + c.kv_bytes) for _, n, c in costed))
        return sum(n * self._time(instr, c, stream)[0] for instr, n, c in costed)

    def compute_seconds(self, load: Load) -> float:
        """Seconds of one step's arithmetic alone, each instruction at the peak of what it multiplies."""
        return sum(n * c.flops / (self._peak(instr) * 1e9) for instr, n, c in self._costed(load))

    def stream_bytes(self, load: Load) -> float:
        """Bytes of weights and KV that one step moves."""
        return sum(n * (c.weight_bytes + c.kv_bytes) for _, n, c in self._costed(load))

    def table(self, load: Load, by: Callable[[int, Instr], str]) -> list[Line]:
        """Lines of one step, instructions gathered by the name `by(index, instr)` gives them, in order."""
        instrs = self.program.instrs if load.rows else self.program.forward.instrs
        costed = [(i, instr, instr_cost(instr, load)) for i, instr in enumerate(instrs)]
        stream = self.peaks.read_gb_s(sum(c.weight_bytes + c.kv_bytes for _, _, c in costed))
        lines: dict[str, Line] = {}
        for i, instr, cost in costed:
            seconds, bound = self._time(instr, cost, stream)
            name = by(i, instr)
            line = Line(name, 1, cost, seconds, seconds if bound == COMPUTE else 0.0)
            lines[name] = _sum(name, (lines[name], line)) if name in lines else line
        return list(lines.values())

    def _costed(self, load: Load) -> list[tuple[Instr, int, Cost]]:
        """One instruction of each kind, how many there are of it, and the cost of one."""
        groups = self._forward + (self._sample if load.rows else [])
        return [(instr, count, instr_cost(instr, load)) for instr, count in groups]

    def _peak(self, instr: Instr) -> float:
        """1e9 operations a second of the arithmetic that `instr` may use at best."""
        kind, p = multiplies(instr), self.peaks
        return p.int8_gops if kind == "int8" else (kind == "bf16" and p.bf16_gflops) or p.fp32_gflops

    def _time(self, instr: Instr, cost: Cost, stream_gb_s: float) -> tuple[float, str]:
        compute = cost.flops / (self._peak(instr) * 1e9)
        acts = cost.act_bytes / self.peaks.read_gb_s(cost.act_bytes)
        memory = ((cost.weight_bytes + cost.kv_bytes) / stream_gb_s + acts) / 1e9
        return (compute, COMPUTE) if compute > memory else (memory, MEMORY)


def total(lines: Iterable[Line]) -> Line:
    """The sum of all lines."""
    return _sum("total", tuple(lines))


def by_op(index: int, instr: Instr) -> str:
    return instr.op


def by_layer(index: int, instr: Instr) -> str:
    """layers.7 for all of layer 7; other scopes by name, what is outside of any as "in"."""
    parts = instr.scope.split(".")
    return ".".join(parts[:2]) if parts[0] == "layers" else parts[0] or "in"


def by_instr(index: int, instr: Instr) -> str:
    weights = [show(x) for x in instr.operands.values() if isinstance(x, Weight)]
    return " ".join([f"{index}", instr.op, *weights])


BY = {"op": by_op, "layer": by_layer, "instr": by_instr}


def _sum(name: str, lines: tuple[Line, ...]) -> Line:
    return Line(
        name,
        sum(x.count for x in lines),
        sum((x.cost for x in lines), Cost()),
        sum(x.seconds for x in lines),
        sum(x.compute_seconds for x in lines),
    )


def multiplies(instr: Instr) -> str:
    """int8, bf16 or f32: the rows that a linear reads, the keys and values that attention reads."""
    if instr.op == "linear":
        x = instr.operands["x"]
        held = x.type.dtype if isinstance(x, View) else "f32"
    else:
        held = next((x.state.format for x in instr.operands.values() if isinstance(x, StateRef)), "f32")
    return "int8" if held.startswith(("i8", "int8")) else held


def _alike(instrs: Iterable[Instr]) -> list[tuple[Instr, int]]:
    """One instruction of each kind that has a cost of its own, and how many there are of it."""
    first: dict[str, Instr] = {}
    counts: Counter[str] = Counter()
    for instr in instrs:
        key = repr(
            (instr.op, [(n, _kind(x)) for n, x in instr.operands.items()], [b.type for b in instr.outputs], instr.attrs)
        )
        first.setdefault(key, instr)
        counts[key] += 1
    return [(instr, counts[key]) for key, instr in first.items()]


def _kind(x: Operand) -> object:
    """What the cost of an instruction may depend on in an operand."""
    if isinstance(x, Weight):
        return x.shape, weight_nbytes(x)
    if isinstance(x, StateRef):
        return x.state
    return None if x is None else getattr(x, "type", x)
