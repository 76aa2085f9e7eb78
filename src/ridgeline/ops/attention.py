"""attention: appends this step's keys and values to paged state, then attends; and the numpy store of such state.

Invariant 1 in words: K/V are written in the state's format first and every query reads stored values, its own
included; keys are cut in ranges of 64 by absolute position, each with its own maximum, merged in ascending order (a
backend may merge spans of ranges first, if the spans follow from the row alone); keys that are not visible are never
touched, so a page may hold anything (NaN in tests) outside its live slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ridgeline.ops.spec import Array, Call, Case, Cost, Load, TensorType, op

PAGE = 64  # keys in a page, and in a range


def round_bf16(x: Array) -> Array:
    """x rounded to the nearest bfloat16 (ties to even), as float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), x, rounded.view(np.float32))


def round_int8(x: Array) -> Array:
    """x [..., head_dim] rounded to int8 with one scale per row: its maximum / 127, rounded up to bfloat16.

    Scales below 2^-100 count as 0. A row with a value that is no finite number has none.
    """
    exact = np.abs(x).max(axis=-1, keepdims=True).astype(np.float32) / np.float32(127)
    bits = (exact.view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)
    scale = np.where(bits.view(np.float32) < 2.0**-100, np.float32(0), bits.view(np.float32))
    scale = np.where(np.isfinite(exact), scale, np.float32(np.nan))
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    rounded: Array = np.where(np.isnan(scale), scale, np.round(x * inverse) * scale).astype(np.float32)
    return rounded


@dataclass(frozen=True)
class KVFormat:
    """How a key or value is stored: `packed` dimensions of `element_bytes` lie together, then `scale_bytes` per head.

    `round` is what storing does to float32 [..., head_dim]; `factor` what multiplying with keys and values does to
    queries, and to probabilities relative to their range's own maximum. `tolerance`, relative to the largest result,
    is for what stays open: a factor on a rounding edge, and the int8 factors, whose scales only a backend has (0: the
    op's own).
    """

    element_bytes: int
    round: Callable[[Array], Array]
    factor: Callable[[Array], Array] = lambda x: x
    packed: int = 1
    scale_bytes: int = 0
    tolerance: float = 0.0

    def head_bytes(self, head_dim: int) -> int:
        """Bytes of one head's key, or value."""
        return -(-head_dim // self.packed) * self.packed * self.element_bytes + self.scale_bytes


KV_FORMATS = {
    "f32": KVFormat(4, lambda x: x),
    "bf16": KVFormat(2, round_bf16, factor=round_bf16, packed=2, tolerance=1e-3),
    "int8": KVFormat(1, round_int8, packed=4, scale_bytes=2, tolerance=2e-2),
}


@dataclass
class KVPages:
    """Keys and values of one layer in numpy: float32 [pages * 64, n_kv_heads, head_dim], rounded to `format`."""

    k: Array
    v: Array
    format: str = "f32"

    @classmethod
    def empty(cls, pages: int, n_kv_heads: int, head_dim: int, format: str = "f32") -> KVPages:
        """Fresh pages; the operating system commits memory when they are touched."""
        shape = (pages * PAGE, n_kv_heads, head_dim)
        return cls(np.zeros(shape, np.float32), np.zeros(shape, np.float32), format)

    def poison(self) -> KVPages:
        """Fill everything with NaN, so that whatever is read before it is written shows (tests)."""
        self.k.fill(np.nan)
        self.v.fill(np.nan)
        return self

    def write(self, slots: Array, k: Array, v: Array) -> None:
        """Store rows k, v [T, n_kv_heads * head_dim] at `slots` [T]."""
        rounding = KV_FORMATS[self.format].round
        self.k[slots] = rounding(k.reshape(len(slots), *self.k.shape[1:]))
        self.v[slots] = rounding(v.reshape(len(slots), *self.v.shape[1:]))

    def move(self, source: int, target: int, count: int) -> None:
        """Copy `count` consecutive slots (copy on write, beams, compaction after speculation)."""
        for store in (self.k, self.v):
            store[target : target + count] = store[source : source + count].copy()


def _cost(call: Call, load: Load) -> Cost:
    window = call.attrs.get("window", 0)
    heads, state = call.attrs["n_heads"], call.ins["kv"]
    flops = 4.0 * heads * state.head_dim * load.attended(window)
    kv = state.layer_token_bytes * (load.cached(window) + load.tokens)
    return Cost(flops, sum(call.weight_bytes.values()), kv, call.act(load))


def _case(rng: np.random.Generator, spans: list[tuple[int, int]], heads: int, kv_heads: int, **attrs: Any) -> Case:
    """Requests of (cached, new) keys on shuffled pages; unused slots hold NaN."""
    dim, fmt, width = attrs.pop("head_dim", 64), attrs.pop("format", "f32"), 0
    width = max(-(-(start + new) // PAGE) for start, new in spans)
    pages = rng.permutation(width * len(spans) + 1).astype(np.int32)
    table = np.full((len(spans), width), -1, np.int32)
    kv = KVPages.empty(len(pages), kv_heads, dim, fmt).poison()
    slots, lens, request = [], [], []
    for r, (start, new) in enumerate(spans):
        used = -(-(start + new) // PAGE)
        table[r, :used] = pages[r * width : r * width + used]
        where = np.array([table[r, p // PAGE] * PAGE + p % PAGE for p in range(start + new)])
        kv.write(where[:start], *rng.standard_normal((2, start, kv_heads * dim), dtype=np.float32))
        slots.append(where[start:])
        lens.append(np.arange(start + 1, start + new + 1))
        request.append(np.full(new, r))
    t = sum(new for _, new in spans)
    operands: dict[str, Any] = {
        "q": rng.standard_normal((t, heads * dim), dtype=np.float32),
        "k": rng.standard_normal((t, kv_heads * dim), dtype=np.float32),
        "v": rng.standard_normal((t, kv_heads * dim), dtype=np.float32),
        "kv": kv,
        "page_table": table,
        "kv_slot": np.concatenate(slots).astype(np.int32),
        "kv_len": np.concatenate(lens).astype(np.int32),
        "request": np.concatenate(request).astype(np.int32),
    }
    name = f"{spans}/{heads}:{kv_heads}x{dim}/{fmt}{attrs or ''}"
    return Case(name, operands, {"n_heads": heads, "scale": dim**-0.5, **attrs}, KV_FORMATS[fmt].tolerance)


def _cases(rng: np.random.Generator) -> Iterable[Case]:
    yield _case(rng, [(0, 1)], 1, 1)
    yield _case(rng, [(0, 17)], 9, 3)
    yield _case(rng, [(63, 2), (130, 1), (0, 65)], 9, 3)
    yield _case(rng, [(200, 1), (7, 3)], 8, 2, head_dim=80, format="bf16")
    yield _case(rng, [(130, 70)], 3, 3, window=100)
    yield _case(rng, [(5, 3)], 4, 1, head_dim=256, softcap=30.0)
    yield _case(rng, [(70, 1), (0, 20)], 8, 2, head_dim=40, format="int8")
    yield _case(rng, [(1100, 2), (300, 1)], 4, 2, head_dim=64, format="bf16")


@op(
    "q:act k:act v:act kv:state page_table:field kv_slot:field kv_len:field request:field "
    "path:field? span:field? sinks:weight? slopes:weight?",
    shape=lambda q, *_, **__: TensorType(q.shape),
    cost=_cost,
    cases=_cases,
    tolerance=2e-5,
)
def attention(
    q: Array, k: Array, v: Array, kv: KVPages, page_table: Array, kv_slot: Array, kv_len: Array, request: Array,
    path: Array | None = None, span: Array | None = None, sinks: Array | None = None, slopes: Array | None = None,
    *, n_heads: int, scale: float, window: int = 0, softcap: float = 0.0,
) -> Array:  # fmt: skip
    """Causal attention of q [T, n_heads * d] over paged keys; k, v [T, n_kv_heads * d] are appended first.

    Token t sees keys 0..kv_len[t]-1 of its request's pages, then the slots of path[t] (a tree row's ancestors and
    itself, -1 padded), and up to span[t] where that is further (bidirectional spans). `window` keeps the last so
    many; `softcap` bounds scores; `sinks` [n_heads] join the softmax as keys without value; `slopes` [n_heads] are
    ALiBi's. Returns [T, n_heads * d].
    """
    kv.write(kv_slot, k, v)
    factor = KV_FORMATS[kv.format].factor
    out = np.empty((len(q), n_heads, kv.k.shape[2]), np.float32)
    for t, row in enumerate(factor(q).reshape(out.shape)):
        seen = int(kv_len[t] if span is None else max(kv_len[t], span[t]))
        branch = path[t][path[t] >= 0] if path is not None else np.empty(0, np.int32)
        position = int(kv_len[t]) + len(branch) - 1
        first = max(0, position - window + 1) if window else 0
        at = np.arange(first, seen)
        slots = np.concatenate([page_table[request[t], at // PAGE] * PAGE + at % PAGE, branch])
        bias = None if slopes is None else slopes[:, None] * (np.arange(first, first + len(slots)) - position)
        out[t] = _attend(row, kv.k[slots], kv.v[slots], factor, first, scale, softcap, sinks, bias)
    return out.reshape(q.shape)


def _attend(
    q: Array, k: Array, v: Array, factor: Callable[[Array], Array], first: int, scale: float, softcap: float,
    sinks: Array | None, bias: Array | None,
) -> Array:  # fmt: skip
    """One query row [H, d] over visible keys k, v [n, KV, d], the first at absolute position `first`."""
    heads, dim = q.shape
    group = heads // k.shape[1]
    scores = np.einsum("kgd,nkd->kgn", q.reshape(-1, group, dim), k).reshape(heads, -1) * np.float32(scale)
    if softcap:
        scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
    if bias is not None:
        scores = (scores + bias).astype(np.float32)
    top = np.full(heads, -np.inf, np.float32) if sinks is None else sinks.astype(np.float32)
    weight = np.zeros(heads, np.float32) if sinks is None else np.ones(heads, np.float32)
    total = np.zeros((heads, dim), np.float32)
    end = first + len(k)
    for start in range(first // PAGE * PAGE, end, PAGE):
        at = slice(max(start, first) - first, min(start + PAGE, end) - first)
        part = scores[:, at]
        new = np.maximum(top, part.max(axis=1))
        p = factor(np.exp(part - part.max(axis=1)[:, None]))
        old_scale, new_scale = np.exp(top - new), np.exp(part.max(axis=1) - new)
        values = np.einsum("kgn,nkd->kgd", p.reshape(-1, group, p.shape[1]), v[at]).reshape(heads, dim)
        total = total * old_scale[:, None] + values * new_scale[:, None]
        weight = weight * old_scale + p.sum(axis=1) * new_scale
        top = new
    return total / weight[:, None]
