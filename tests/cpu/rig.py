"""A tiny Llama on the cpu backend and on the oracle, driven by hand-made batches; pages start full of NaN."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ridgeline.backends.cpu.backend import CPU
from ridgeline.backends.reference import Reference
from ridgeline.models import llama
from ridgeline.models.config import ModelConfig, Rope
from ridgeline.ops.attention import PAGE
from ridgeline.program.batch import WANT_HIDDEN, WANT_IDS, WANT_LOGITS, Batch, BatchLayout, Limits
from ridgeline.program.capture import capture
from ridgeline.program.ir import Program, Weight
from ridgeline.program.passes import pipeline
from ridgeline.quant.format import FORMATS
from ridgeline.weights.source import Raw

TINY = ModelConfig("llama", 131, 96, 2, 12, 4, 24, 160, 1e-5, Rope(1e4, 24), 1024, tied=True)
LIMITS = Limits(tokens=256, requests=4, rows=256, pages=6, vocab=131, hidden=96, held=4, masks=2)
PAGES = 48  # two groups of 4 requests of 6 pages


def program(
    weight_format: str = "f32", kv_format: str = "f32", int8: bool = False, fused: bool = True, **config: Any
) -> Program:
    """The tiny model after the passes a load would run."""
    c = replace(TINY, **config)
    captured = capture("tiny", lambda m: llama.forward(m, c), lambda m, h: llama.logits(m, c, h))
    held = CPU.held_as[weight_format]
    steps = pipeline.passes(
        lambda w: held if len(w.shape) > 1 else "f32", kv_format, fused=fused,
        multiplies=CPU.multiplies if int8 else {},
    )  # fmt: skip
    return pipeline.run(captured, steps)


def reader(weight_format: str) -> Any:
    """Seeded weights; a merged weight is its parts' rows, so fusing changes no value."""

    def part(name: str, shape: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.15)
        return values + np.float32(len(shape) == 1)

    def rows(name: str) -> int:
        sizes = {"q": 12 * 24, "k": 4 * 24, "v": 4 * 24, "gate": 160, "up": 160}
        return next(n for label, n in sizes.items() if f".{label}." in name)

    def read(w: Weight) -> Raw:
        split = [w.shape] if len(w.parts) == 1 else [(rows(p), *w.shape[1:]) for p in w.parts]
        values = np.concatenate([part(p, shape) for p, shape in zip(w.parts, split, strict=True)])
        fmt = weight_format if len(w.shape) > 1 else "f32"
        return Raw(fmt, w.shape, FORMATS[fmt].pack(np.atleast_2d(values)))

    return read


def cpu_step(p: Program, weight_format: str = "f32", threads: int = 1, isa: str = "", limits: Limits = LIMITS) -> Any:
    step = CPU(threads, isa).compile(p, reader(weight_format), BatchLayout.of(limits, p.states), PAGES)
    step.kv.fill(0xFF)  # NaN in both formats
    return step


def reference_step(p: Program, weight_format: str = "f32", limits: Limits = LIMITS) -> Any:
    return Reference().compile(p, reader(weight_format), BatchLayout.of(limits, p.states), PAGES)


def tables(group: int = 0) -> np.ndarray:
    """Shuffled pages of each request in a group, [requests, P]; groups share the pool, so their pages differ."""
    return np.random.default_rng(3).permutation(PAGES).astype(np.int32).reshape(2, 4, -1)[group]


def batch_of(layout: BatchLayout, chunks: Sequence[tuple[int, Sequence[int], int]], step: int = 1) -> Batch:
    """A batch of (request, ids, first position); every token wants its logits and hidden row."""
    b = Batch(layout)
    total = sum(len(ids) for _, ids, _ in chunks)
    b.resize(step=step, T=total, R=4, L=total)
    at = 0
    for request, ids, first in chunks:
        part, positions = slice(at, at + len(ids)), np.arange(first, first + len(ids))
        b["ids"][part], b["request"][part] = ids, request
        b["positions"][:, part], b["kv_len"][part] = positions, positions + 1
        for group, name in enumerate(layout.groups):
            table = b[f"page_table.{name}"]
            table[:] = tables(group)
            b[f"kv_slot.{name}"][part] = table[request][positions // PAGE] * PAGE + positions % PAGE
        at += len(ids)
    b["out_rows"][:] = np.arange(total)
    b["want"][:] = WANT_IDS | WANT_LOGITS | WANT_HIDDEN
    s = b["sampler"]
    s["target"], s["mask_row"], s["top_p"], s["typical_p"], s["repetition"] = -1, -1, 1, 1, 1
    s["position"] = np.arange(total)
    return b


def prompt(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 131, n).tolist()


def logits(step: Any, ids: Sequence[int], cuts: Sequence[int], request: int = 0) -> np.ndarray:
    """Logits of every position of one sequence given in chunks that end at `cuts`."""
    out, first = [], 0
    for end in (*cuts, len(ids)):
        out.append(step.run(batch_of(step.layout, [(request, ids[first:end], first)])).logits)
        first = end
    return np.concatenate(out)
