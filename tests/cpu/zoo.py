"""Tiny programs of many kinds with seeded weights in any held format, and random mixed batches for them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from harness import small
from rig import PAGES, TINY, tables

from ridgeline import models
from ridgeline.backends.cpu.backend import CPU
from ridgeline.models.config import ModelConfig, Rope
from ridgeline.ops.attention import PAGE
from ridgeline.ops.sample import COUNT_PROMPT, PROCESSED, REPEAT_PROMPT
from ridgeline.program.batch import WANT_HOLD, WANT_IDS, Batch, BatchLayout, Limits
from ridgeline.program.ir import Program, Weight
from ridgeline.program.passes import pipeline
from ridgeline.quant.format import FORMATS
from ridgeline.weights.source import Raw

SAMPLERS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 1.0, "n_top": 5},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    {"repetition": 1.3, "frequency": 0.5, "presence": 0.4, "history_stop": 20, "flags": REPEAT_PROMPT},
    {"temperature": 2.0, "mask_row": 1, "flags": PROCESSED},
    {"temperature": 1.0, "bias_start": 1, "bias_stop": 6, "n_top": 20, "mask_row": 0},
    {"temperature": 1.2, "typical_p": 0.8, "top_p": 0.95, "flags": PROCESSED},
    {"target": 5, "bias_stop": 3, "history_start": 3, "history_stop": 9, "flags": COUNT_PROMPT | PROCESSED},
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A tiny model as a load would hold it. `weights` is the stored format of matrices, `rows` what linears read:
    the choices of the quantize pass, or a row type for all of them."""

    name: str
    weights: str = "f32"
    kv: str = "f32"
    rows: str = "float32"
    config: dict[str, Any] = field(default_factory=dict)
    fused: bool = True

    @property
    def shape(self) -> ModelConfig:
        return replace(TINY, **self.config)

    def program(self) -> Program:
        held = CPU.held_as[self.weights]
        choice, multiplies = self.rows, CPU.multiplies
        if "i8" in self.rows:  # two terms are for the head and attention
            choice, multiplies = "int8-row", {held: (self.rows.removesuffix("x2"), self.rows)}
            choice = "auto" if self.rows.endswith("x2") else choice
        steps = pipeline.passes(
            lambda w: held if len(w.shape) > 1 else "f32", self.kv, fused=self.fused, multiplies=multiplies,
            activations=choice,
        )  # fmt: skip
        return pipeline.run(models.build(self.shape), steps)

    def read(self, w: Weight) -> Raw:
        rng = np.random.default_rng(zlib.crc32("+".join(w.parts).encode()))
        fmt = self.weights if len(w.shape) > 1 else "f32"
        if FORMATS[fmt].pack_blocks is None:
            return small(fmt, *w.shape, 0x9F)
        values = rng.standard_normal(w.shape, dtype=np.float32) * np.float32(0.15) + np.float32(len(w.shape) == 1)
        return Raw(fmt, w.shape, FORMATS[fmt].pack(np.atleast_2d(values)))

    def limits(self, **more: int) -> Limits:
        c = self.shape
        sizes = {"tokens": 96, "rows": 96, "held": 4, "masks": 2, "copies": 8, "bias": 16, "history": 64}
        return Limits(requests=4, pages=6, vocab=c.vocab, hidden=c.hidden, **{**sizes, **more})

    def layout(self, **more: int) -> BatchLayout:
        return BatchLayout.of(self.limits(**more), self.program().states)

    @property
    def pages(self) -> int:
        return PAGES


_WIDE = {
    "hidden": 256, "layers": 1, "n_heads": 8, "n_kv_heads": 2, "head_dim": 32, "ffn": 256, "rope": Rope(1e4, 32),
}  # fmt: skip
_ODD = {
    "hidden": 100, "n_heads": 6, "n_kv_heads": 3, "head_dim": 22, "ffn": 76, "vocab": 1100, "rope": Rope(1e4, 10),
}  # fmt: skip
_LAYER_NORM = {"norm": "layer", "gated": False, "qkv_bias": True, "o_bias": True, "mlp_bias": True}
_GPT2 = {"family": "gpt2", **_LAYER_NORM, "activation": "gelu_tanh", "learned_positions": True, "rope": None}
_BLOOM = {"family": "bloom", **_LAYER_NORM, "activation": "gelu", "alibi": 1.0, "embed_norm": True, "rope": None}
_FALCON = {**_LAYER_NORM, "family": "falcon", "activation": "gelu", "residual": "parallel", "shared_norm": True}
_GEMMA = {"family": "gemma2", "activation": "gelu_tanh", "residual": "sandwich", "embed_scale": 9.8,
          "attention_softcap": 5.0, "logit_softcap": 4.0, "windows": (24, 0)}  # fmt: skip
_KV = ("f32", "bf16", "int8")


def _row_types(fmt: str) -> tuple[str, ...]:
    return ("float32", *CPU.multiplies.get(CPU.held_as[fmt], ()))


MODELS = (
    Model("llama", config={"windows": (0, 70)}),
    Model("llama-unfused", config={"windows": (0, 70), "qk_norm": True}, fused=False),
    Model("odd", "bf16", "bf16", "bf16", {**_ODD, "ffn": 77, "qkv_bias": True, "tied": False}),
    Model("odd-int8", "int8", "int8", "i8", {**_ODD, "windows": (0, 30)}),
    Model("many-heads", "q4_1", "bf16", "int8", {"n_heads": 20, "n_kv_heads": 1}),
    Model("two-terms", "q8_0", "int8", "auto", {"windows": (70, 70)}),
    Model("gpt2", "f16", "f32", "float32", _GPT2),
    Model("bloom", "q8_0", "bf16", "int8", _BLOOM),
    Model("falcon", "q4_0", "int8", "int8", _FALCON),
    Model("gemma", "bf16", "int8", "bf16", _GEMMA),
    *(
        Model(f"{fmt}-{rows}", fmt, _KV[i % 3], rows, _WIDE)
        for fmt in CPU.held_as
        for i, rows in enumerate(_row_types(fmt))
    ),
)  # fmt: skip

Chunk = tuple[int, int, int]  # request, tokens, first position


def batch_of(layout: BatchLayout, chunks: list[Chunk], rows: Callable[[int], bool], step: int = 1) -> Batch:
    """A batch of chunks with random ids; tokens `t` with rows(t) are sampled from, each in another way."""
    b, total = Batch(layout), sum(n for _, n, _ in chunks)
    rng = np.random.default_rng(total * 1000 + step)
    wanted = [t for t in range(total) if rows(t)]
    b.resize(step=step, T=total, R=4, L=len(wanted), E=min(8, layout.limits.bias), H=20, M=layout.limits.masks)
    vocab, at = layout.limits.vocab, 0
    b["ids"][:] = rng.integers(0, vocab, total)
    for request, n, first in chunks:
        part, positions = slice(at, at + n), np.arange(first, first + n)
        b["request"][part], b["positions"][:, part], b["kv_len"][part] = request, positions, positions + 1
        for group, name in enumerate(layout.groups):
            table = b[f"page_table.{name}"]
            table[:] = tables(group)
            b[f"kv_slot.{name}"][part] = table[request][positions // PAGE] * PAGE + positions % PAGE
        at += n
    b["out_rows"][:], b["want"][:] = wanted, WANT_IDS
    s = b["sampler"]
    s["target"], s["mask_row"], s["top_p"], s["typical_p"], s["repetition"] = -1, -1, 1, 1, 1
    s["seed"], s["position"] = 17, np.arange(len(wanted))
    for i in range(len(wanted)):
        for name, value in SAMPLERS[(i + step) % len(SAMPLERS)].items():
            s[name][i] = value
    b["bias_ids"][:], b["bias_values"][:] = rng.choice(vocab, 8), rng.standard_normal(8)
    b["history_ids"][:], b["history_prompt"][:] = rng.choice(vocab, 20, replace=False), rng.integers(0, 2, 20)
    b["history_output"][:] = rng.integers(0, 3, 20)
    b["masks"][:] = rng.integers(0, 2**32, b["masks"].shape, np.uint64)
    return b


def story(layout: BatchLayout, longest: int = 75) -> list[Batch]:
    """Batches that follow each other: prefill, decode, mixtures of both, no rows, copies, held rows. The first one
    is as large as batches get."""
    most = layout.limits.tokens

    def last(*ends: int) -> Callable[[int], bool]:
        return lambda t: t + 1 in ends

    b = [
        batch_of(layout, [(0, longest, 0), (2, most - longest, 0)], lambda t: True, 1),
        batch_of(layout, [(0, 1, longest)], last(1), 2),
        batch_of(layout, [(1, 9, 0), (0, 5, longest + 1), (2, 1, 21), (3, 30, 0)], lambda t: t % 2 == 0, 3),
        batch_of(layout, [(2, 1, 22)], lambda t: False, 4),
        batch_of(layout, [(0, 1, longest + 6), (1, 1, 9), (2, 1, 23), (3, 1, 30)], lambda t: True, 5),
        batch_of(layout, [(3, 1, 31)], last(1), 8),
    ]
    b[0]["span"][:3] = 9
    b[2]["want"][3], b[2]["hold_slot"][3] = WANT_IDS | WANT_HOLD, 2
    b[4]["out_rows"][1] = -1 - 2
    if layout.groups:
        page, target = tables()[0], tables()[2]
        b[4].resize(C=3)
        b[4]["copies"][:] = [
            (0, page[0] * PAGE, target[1] * PAGE, PAGE),
            (0, page[1] * PAGE, tables()[3][1] * PAGE, 7),
            (0, page[1] * PAGE, page[1] * PAGE + 20, 30),
        ]
    return b
