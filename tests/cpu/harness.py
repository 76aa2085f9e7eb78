"""Runs one op's test case through the native loop, as a program of one instruction."""

from __future__ import annotations

from typing import Any

import numpy as np

from ridgeline.backends.cpu import _native
from ridgeline.backends.cpu.backend import CPU, result
from ridgeline.backends.cpu.panels import Panels
from ridgeline.backends.cpu.record import Extents, encode
from ridgeline.ops.attention import KV_FORMATS, PAGE, KVPages
from ridgeline.ops.linear import QuantizedRows
from ridgeline.ops.spec import OPS, TWO_TERMS, Case, TensorType, groups_of, row_bytes
from ridgeline.program.batch import HEADER, MAGIC, VERSION, FieldSlot
from ridgeline.program.ir import Buffer, Entry, Field, Instr, State, StateRef, View, Weight
from ridgeline.program.memory import MemoryPlan, plan_memory
from ridgeline.quant.format import FORMATS
from ridgeline.weights.source import Raw


def _runs(isa: str) -> bool:
    try:
        return _native.isa(isa) == isa
    except ValueError:
        return False


ISAS = [name for name in ("portable", "avx2", "avx512", "avx512bf16") if _runs(name)]


TWO = dict.fromkeys(("q4_1", "q5_1", "uint4_g64", "uint4_g128", "q4_k", "q5_k"), (0, 2))
SCALES = {"q2_k": (80, 82), "q3_k": (108,), "q6_k": (208,), **TWO}  # where blocks hold halves, if not at 0 alone


def backend(threads: int = 1, isa: str = "") -> CPU:
    return CPU(threads=threads, isa=isa)


def run_case(op: str, case: Case, cpu: CPU, weight_format: str = "f32") -> list[np.ndarray]:
    """Outputs of `op` on a case's operands; 2-D weights are held in `weight_format`."""
    return OneOp(op, case, cpu, weight_format).run()


class OneOp:
    """A program of one instruction, its batch, arena and state."""

    def __init__(self, op: str, case: Case, cpu: CPU, weight_format: str = "f32", **raws: Raw) -> None:
        """`raws` are the bytes of weights that no packer makes."""
        self.case, self.cpu, self.weight_format = case, cpu, weight_format
        self.params: dict[str, Buffer] = {}
        self.raws: dict[str, Raw] = raws
        self.slots: dict[str, FieldSlot] = {}
        self.kv = case.operands.get("kv")
        self.batch = self._batch(op)
        spec = OPS[op]
        operands = {p.name: self._operand(p.kind, p.name, case.operands.get(p.name)) for p in spec.params}
        types = [getattr(x, "type", x) for x in operands.values()]
        while types and types[-1] is None:
            types.pop()
        outs = spec.shape(*types, **case.attrs)
        outs = outs if isinstance(outs, tuple) else (outs,)
        self.outputs = tuple(Buffer(100 + i, t) for i, t in enumerate(outs))
        instr = Instr(op, operands, self.outputs, case.attrs)
        self.entry = Entry(tuple(self.params.values()), (instr,), tuple(map(_whole, self.outputs)))

    def run(self) -> list[np.ndarray]:
        plan = plan_memory(self.entry, None)  # no symbols, so no limits
        arena = _native.Memory(plan.nbytes + 64)
        arena.array().fill(0xFF)  # NaN
        for name, buffer in self.params.items():
            raw = act_bytes(self.case.operands[name])
            arena.array()[plan.offsets[buffer.id] : plan.offsets[buffer.id] + raw.size] = raw
        step = self._step(plan, arena)
        step.run(self.batch)
        return [self._output(arena, plan, b) for b in self.outputs]

    def _step(self, plan: MemoryPlan, arena: _native.Memory) -> _native.Step:
        sizes = dict(zip(HEADER[4:], self.batch[: 8 * 16].view(np.int64)[4:].tolist(), strict=False))
        pages = len(self.kv.k) // PAGE if self.kv is not None else 0
        extents = Extents(self.slots, self.batch.nbytes, sizes, ("g",), pages)
        record = encode(self.entry, plan, extents)
        weights = Panels(self.cpu.pool, CPU.held_as).load(record.weights, [], lambda w: self.raws[w.name], None)[0]
        vectors = [self.raws[w.name].float32().reshape(-1) for w in record.vectors]
        pool = kv_pool(self.kv) if self.kv is not None else np.zeros(0, np.uint8)
        spare = (_native.PAGE_RUN - 1) * pool.size // max(pages, 1)
        self.pool = _native.Memory(pool.size + spare + 64)
        self.pool.array()[: pool.size] = pool
        return _native.Step(self.cpu.pool, self.cpu.isa, record.words, weights, vectors, self.pool, arena)

    def _operand(self, kind: str, name: str, value: Any) -> Any:
        if value is None:
            return None
        if kind == "act":
            dtype = value.dtype if isinstance(value, QuantizedRows) else "bf16" if isinstance(value, Bf16) else "f32"
            self.params[name] = Buffer(len(self.params), TensorType(value.shape, dtype))
            return _whole(self.params[name])
        if kind == "weight":
            fmt = self.weight_format if value.ndim == 2 else "f32"
            if name not in self.raws:
                self.raws[name] = Raw(fmt, value.shape, FORMATS[fmt].pack(np.atleast_2d(value)))
            return Weight(name, value.shape, ("",) * value.ndim, CPU.held_as.get(fmt, fmt))
        if kind == "state":
            _, heads, dim = value.k.shape
            return StateRef(State("g", 1, heads, dim, value.format), 0)
        return Field(name, TensorType(value.shape))

    def _batch(self, op: str) -> np.ndarray:
        fields = {
            p.name: self.case.operands[p.name]
            for p in OPS[op].params
            if p.kind == "field" and p.name in self.case.operands
        }
        offset = 8 * 16
        for name, x in fields.items():
            self.slots[name] = FieldSlot(name, offset, x.shape, ("",) * x.ndim, x.dtype)
            offset += -(-x.nbytes // 64) * 64
        batch = np.zeros(offset, np.uint8)
        header = batch[: 8 * 16].view(np.int64)
        header[:3] = MAGIC, VERSION, offset
        for axis, name in (("E", "bias_ids"), ("H", "history_ids"), ("M", "masks")):
            header[HEADER.index(axis)] = len(fields.get(name, ()))
        for name, x in fields.items():
            at = self.slots[name].offset
            batch[at : at + x.nbytes] = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
        return batch

    def _output(self, arena: _native.Memory, plan: MemoryPlan, buffer: Buffer) -> Any:
        rows, dtype = buffer.type.shape[0], buffer.type.dtype
        if dtype in ("f32", "i32"):
            return result(arena.array(), plan, _whole(buffer), rows).copy()
        at, width, columns = plan.offsets[buffer.id], row_bytes(buffer.type), buffer.type.columns
        raw = arena.array()[at : at + rows * width].reshape(rows, width).copy()
        if dtype == "bf16":
            bits = raw[:, : columns * 2].view(np.uint16).astype(np.uint32) << np.uint32(16)
            return bits.view(np.float32)
        groups, group = groups_of(dtype, columns)
        raw = raw.reshape(rows * terms(dtype), -1)
        q, scale, sums = np.split(raw, [groups * group, groups * (group + 4)], axis=1)
        wanted = q.view(np.int8).reshape(-1, groups, group).sum(axis=2, dtype=np.int32)
        assert np.array_equal(np.ascontiguousarray(sums).view(np.int32), wanted)
        q, scale = q.copy().view(np.int8).reshape(rows, -1), scale.copy().view(np.float32).reshape(rows, -1)
        return QuantizedRows(q, scale, columns, dtype)


def terms(dtype: str) -> int:
    """Int8 rows that make a row of this type."""
    return 2 if dtype in TWO_TERMS else 1


class Bf16(np.ndarray):
    """Float32 rows, all of values that bfloat16 has, which an operand of type bf16 holds."""


def _whole(b: Buffer) -> View:
    return View(b, 0, b.type.columns if len(b.type.shape) > 1 else 1)


def act_bytes(x: Any) -> np.ndarray:
    """An activation operand as the arena holds it."""
    if isinstance(x, Bf16):
        rows = np.zeros((len(x), row_bytes(TensorType(x.shape, "bf16")) // 2), np.uint16)
        rows[:, : x.shape[1]] = np.ascontiguousarray(x).view(np.uint32) >> np.uint32(16)
        return rows.view(np.uint8).reshape(-1)
    if not isinstance(x, QuantizedRows):
        return np.ascontiguousarray(x).view(np.uint8).reshape(-1)
    rows = len(x) * terms(x.dtype)
    q, scale = np.ascontiguousarray(x.q).reshape(rows, -1), np.ascontiguousarray(x.scale).reshape(rows, -1)
    sums = q.reshape(rows, -1, x.group).sum(axis=2, dtype=np.int32)
    parts = [q.view(np.uint8), scale.view(np.uint8), sums.view(np.uint8)]
    return np.concatenate(parts, axis=1).reshape(-1)


def kv_pool(kv: KVPages) -> np.ndarray:
    """One layer's pages as the native pool lays them out: [page][kv_head][K block | V block].

    K is [d / P][64][P] and V [column group][64 / P][columns][P], P values of a format lying together.
    """
    slots, heads, dim = kv.k.shape
    p = KV_FORMATS[kv.format].packed
    k, v = (_stored(x, kv.format) for x in (kv.k, kv.v))
    if dim % p:
        k, v = (_padded(x, -dim % p, kv.format) for x in (k, v))
    k, v = (x.reshape(slots // PAGE, PAGE, heads, -1).transpose(0, 2, 1, 3) for x in (k, v))  # [page, head, key, dim]
    keys = k.reshape(*k.shape[:3], -1, p).transpose(0, 1, 3, 2, 4).reshape(*k.shape[:2], -1)
    groups = [v[..., at : at + 64] for at in range(0, v.shape[3], 64)]
    fours = [g.reshape(*g.shape[:2], PAGE // p, p, -1).swapaxes(3, 4).reshape(*g.shape[:2], -1) for g in groups]
    parts = [keys, *fours]
    if kv.format == "int8":
        k_scale, v_scale = (_scales(x).reshape(-1, PAGE, heads).transpose(0, 2, 1) for x in (kv.k, kv.v))
        halves = [np.ascontiguousarray(s).view(np.uint8) for s in (k_scale, v_scale)]
        parts = [keys ^ np.uint8(0x80), *halves, *fours]
    return np.ascontiguousarray(np.concatenate(parts, axis=2)).view(np.uint8).reshape(-1)


def _stored(x: np.ndarray, fmt: str) -> np.ndarray:
    """The bits of rounded values, int8 without their scales."""
    if fmt == "f32":
        return x
    if fmt == "bf16":
        return (x.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    scale = (_scales(x).astype(np.uint32) << np.uint32(16)).view(np.float32)[..., None]
    scale[(scale == 0) | ~np.isfinite(scale)] = 1
    return np.round(np.nan_to_num(x) / scale).astype(np.int8).view(np.uint8)


def _scales(x: np.ndarray) -> np.ndarray:
    """bf16 bits of the scales of rounded int8 rows, whose largest value is 127 or, the scale rounded up, less."""
    exact = np.abs(x).max(axis=-1)
    best = np.full(exact.shape, np.nan, np.float32)
    for most in range(127, 125, -1):
        scale = (exact / np.float32(most)).astype(np.float32)
        fits = (scale.view(np.uint32) & 0xFFFF) == 0
        best = np.where(np.isnan(best) & fits, scale, best)
    return (best.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def _padded(x: np.ndarray, columns: int, fmt: str) -> np.ndarray:
    return np.concatenate([x, np.zeros((*x.shape[:2], columns), x.dtype)], axis=2)


def small(fmt: str, rows: int, k: int, exponent: int = 0xBF) -> Raw:
    """Random bytes in a block format, but with scales below 2, or with other bits of their upper bytes cut off."""
    f = FORMATS[fmt]
    raw = np.random.default_rng(rows * k).integers(0, 256, (rows, k // f.block * f.block_bytes), np.uint8)
    blocks = raw.reshape(-1, f.block_bytes)
    for at in SCALES.get(fmt, (0,)):
        blocks[:, at + (3 if fmt == "q8_k" else 1)] &= 0xBF
    return Raw(fmt, (rows, k), raw)
