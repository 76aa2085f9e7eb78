"""Tiny random models of every supported family, written as a Hugging Face folder or as GGUF, and a way to run them.

Shapes are odd on purpose: 3 KV heads, a vocabulary that is not a multiple of 64, heads wider than hidden / heads.
Weights are declared here by hand, under Hugging Face's names, independently of the model functions they test.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import families
from families import CONFIGS, GGUF_CONFIGS
from families.common import CONTEXT, VOCAB, Arrays
from families.llama import head_dim
from ridgeline.backends.base import Backend, Step
from ridgeline.models import build
from ridgeline.ops.attention import PAGE
from ridgeline.program.batch import WANT_IDS, WANT_LOGITS, Batch, BatchLayout, Limits, StepResult
from ridgeline.program.ir import Program
from ridgeline.program.passes import pipeline
from ridgeline.weights.load import Checkpoint

_TABLES = ("embed_tokens", "embed_in", "word_embeddings", "wte", "wpe")  # whose rows are taken, not multiplied
__all__ = ["CONFIGS", "CONTEXT", "GGUF_CONFIGS", "VOCAB", "Arrays", "head_dim"]


def shapes(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model under its Hugging Face name."""
    return families.module_of(c).shapes(c)


def gguf_name(c: Mapping[str, Any], name: str) -> str:
    """A Hugging Face tensor name as GGUF spells it."""
    return families.module_of(c).gguf_name(c, name)


def gguf_metadata(c: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a GGUF file by name; the architecture's own ones carry its prefix."""
    return families.module_of(c).gguf_metadata(c)


def gguf_tensors(c: Mapping[str, Any], tensors: Arrays) -> Arrays:
    """Tensors as a GGUF file names and orders them."""
    return families.module_of(c).gguf_tensors(c, tensors)


def weights(c: Mapping[str, Any], seed: int = 0) -> Arrays:
    """Seeded float32 weights: rows of unit gain, norms near 1, biases near 0.3. RandomState's stream never changes."""
    rng, family = np.random.RandomState(seed), families.module_of(c)
    made = {}
    for name, shape in shapes(c).items():
        x = rng.standard_normal(shape)
        if len(shape) == 1:
            x = 0.3 * x if name.endswith(".bias") else family.norm_base(name) + 0.2 * x
        elif not any(part in name for part in _TABLES):
            x = x / math.sqrt(shape[-1])
        made[name] = x.astype(np.float32)
    return made


def prompt(count: int, seed: int = 7) -> list[int]:
    """Token ids of a prompt; a longer one starts with the same ids."""
    return [int(i) for i in np.random.RandomState(seed).randint(0, VOCAB, 256)[:count]]


# --- files


def write_safetensors(path: Path, tensors: Arrays) -> None:
    """A float32 .safetensors file."""
    header, at = {}, 0
    for name, x in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [at, at + x.nbytes]}
        at += x.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(x.tobytes() for x in tensors.values()))


def write_hf(folder: Path, c: Mapping[str, Any], tensors: Arrays, shards: int = 1) -> Path:
    """A Hugging Face folder: config.json and one .safetensors file, or `shards` of them with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(c))
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return folder
    index = {}
    for i in range(shards):
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {k: tensors[k] for k in list(tensors)[i::shards]}
        write_safetensors(folder / name, part)
        index |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def write_gguf(
    path: Path, metadata: Mapping[str, Any], tensors: Arrays, format: str = "F32", also: Mapping[str, str] | None = None
) -> Path:
    """A GGUF file by the gguf package; matrices whose rows are whole blocks are quantised to `format`, or to the one
    that `also` gives for a part of their name."""
    import gguf

    kinds = {
        str: gguf.GGUFValueType.STRING, int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32,
        bool: gguf.GGUFValueType.BOOL,
    }  # fmt: skip
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key != "general.architecture":
            writer.add_key_value(key, value, kinds[type(value)])
    for name, x in tensors.items():
        wanted = next((f for part, f in (also or {}).items() if part in name), format)
        kind = gguf.GGMLQuantizationType[wanted if x.ndim > 1 and x.shape[-1] % 32 == 0 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(x, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# --- running


def compile_model(
    checkpoint: Checkpoint, backend: Backend, *, kv_format: str = "f32", fused: bool = True, tokens: int = 256,
    context: int = CONTEXT,
) -> Step:  # fmt: skip
    """A step over float32 activations, with pages for two sequences, all of them full of NaN where we can."""
    program = program_of(checkpoint, backend, kv_format=kv_format, fused=fused)
    c = checkpoint.config
    pages = -(-context // PAGE)
    limits = Limits(tokens=tokens, requests=2, rows=tokens, pages=pages, vocab=c.vocab, hidden=c.hidden)
    layout = BatchLayout.of(limits, program.states)
    step = backend.compile(program, checkpoint.read, layout, 2 * pages * len(program.states))
    for store in getattr(step, "states", {}).values():
        store.poison()
    return step


def program_of(checkpoint: Checkpoint, backend: Backend, *, kv_format: str = "f32", fused: bool = True) -> Program:
    """The program of a checkpoint as the backend would hold it."""
    program = build(checkpoint.config)
    checkpoint.check_all_used(program.weights.values())
    listed = pipeline.passes(checkpoint.format_of, kv_format, fused=fused, held_as=backend.held_as)
    return pipeline.run(program, listed)


class Runner:
    """One sequence on shuffled pages, fed in chunks by hand-made batches. `half`: of the pool's pages, 0 or 1."""

    def __init__(self, step: Step, layout: BatchLayout, seed: int = 0, half: int = 0) -> None:
        self.step, self.layout, self.length = step, layout, 0
        per_group, groups = layout.limits.pages, layout.groups
        pages = np.random.RandomState(seed).permutation(2 * per_group * len(groups)).astype(np.int32)
        own = pages[half * per_group * len(groups) :]
        self.tables = {g: own[i * per_group : (i + 1) * per_group] for i, g in enumerate(groups)}

    def feed(self, ids: Sequence[int]) -> StepResult:
        """Run one chunk; every token wants its logits, and its greedy successor."""
        return feed_together([self], [ids])


def feed_together(runners: Sequence[Runner], parts: Sequence[Sequence[int]]) -> StepResult:
    """Run one chunk of each sequence in one step; rows come in the order of the sequences."""
    b, tokens = Batch(runners[0].layout), sum(map(len, parts))
    b.resize(step=1, T=tokens, R=len(runners), L=tokens)
    start = 0
    for r, (runner, ids) in enumerate(zip(runners, parts, strict=True)):
        rows = slice(start, start + len(ids))
        at = np.arange(runner.length, runner.length + len(ids), dtype=np.int32)
        b["ids"][rows], b["positions"][:, rows], b["kv_len"][rows], b["request"][rows] = ids, at, at + 1, r
        runner.length += len(ids)
        for group, table in runner.tables.items():
            used = -(-runner.length // PAGE)
            b[f"page_table.{group}"][r, :used] = table[:used]
            b[f"kv_slot.{group}"][rows] = table[at // PAGE] * PAGE + at % PAGE
        start += len(ids)
    b["out_rows"][:] = np.arange(tokens)
    b["want"][:] = WANT_IDS | WANT_LOGITS
    s = b["sampler"]
    s["target"], s["mask_row"], s["top_p"], s["typical_p"], s["repetition"] = -1, -1, 1, 1, 1
    return runners[0].step.run(b)


def run_step(
    step: Step, layout: BatchLayout, ids: Sequence[int], chunks: Sequence[int] = (), seed: int = 0
) -> np.ndarray:
    """Logits [len(ids), vocab] of one sequence, given in `chunks` (sizes, the last repeated; none = whole)."""
    runner, out, sizes = Runner(step, layout, seed=seed), [], list(chunks) or [len(ids)]
    at = 0
    while at < len(ids):
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        logits = runner.feed(ids[at : at + size]).logits
        assert logits is not None
        out.append(np.array(logits))
        at += size
    return np.concatenate(out)


def greedy(step: Step, layout: BatchLayout, ids: Sequence[int], count: int) -> list[int]:
    """The next `count` tokens by argmax, one step each."""
    runner = Runner(step, layout)
    picked = [int(runner.feed(ids).ids[-1])]
    while len(picked) < count:
        picked.append(int(runner.feed(picked[-1:]).ids[-1]))
    return picked


def changed(c: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    """A config with some keys set; a value of `...` removes the key."""
    return {k: v for k, v in {**c, **values}.items() if v is not ...}
