"""Traffic: several requests at once, through the engine in this process; and rows in lock-step, without an engine.

Both answer random prompts of one length with a fixed number of greedy tokens. What traffic costs beyond lock-step is
the scheduler's, the batches' and the text's.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ridgeline.engine.records import PAGE
from ridgeline.errors import ConfigError
from ridgeline.llm import LLM
from ridgeline.ops.spec import Array
from ridgeline.program.batch import WANT_IDS, Batch
from ridgeline.tools.bench import greedy, prompt_of

Chunk = tuple[int, int, int]  # request, first position, tokens


@dataclass(frozen=True)
class Concurrent:
    """Requests submitted at once. Time to first token by request, gaps between tokens of a request; all seconds."""

    tokens: int
    seconds: float
    ttft_s: tuple[float, ...]
    itl_s: tuple[float, ...]

    def record(self) -> dict[str, float]:
        return {
            "output_tok_s": self.tokens / self.seconds,
            "ttft_ms_p50": 1e3 * quantile(self.ttft_s, 0.5),
            "itl_ms_p50": 1e3 * quantile(self.itl_s, 0.5),
            "itl_ms_p99": 1e3 * quantile(self.itl_s, 0.99),
        }


def concurrent(llm: LLM, requests: int, prompt: int, tokens: int, rng: random.Random) -> Concurrent:
    """`requests` prompts of `prompt` ids, `tokens` answered to each."""
    times: list[list[float]] = [[] for _ in range(requests)]
    prompts = [prompt_of(llm, prompt, rng) for _ in range(requests)]
    begin = time.perf_counter()
    for ids, seen in zip(prompts, times, strict=True):
        llm.client.submit(ids, greedy(tokens), lambda delta, seen=seen: _note(seen, len(delta.tokens)))  # type: ignore[misc]
    while not llm.client.idle:
        llm.client.pump(0.0)
    seconds = time.perf_counter() - begin
    gaps = [b - a for seen in times for a, b in zip(seen, seen[1:], strict=False)]
    return Concurrent(sum(map(len, times)), seconds, tuple(seen[0] - begin for seen in times), tuple(gaps))


def _note(seen: list[float], tokens: int) -> None:
    seen.extend([time.perf_counter()] * tokens)


@dataclass(frozen=True)
class LockStep:
    """Rows that were prefilled and then decoded together: seconds of the backend's steps, nothing else."""

    rows: int
    prefill_s: tuple[float, ...]
    decode_s: tuple[float, ...]

    def record(self) -> dict[str, float]:
        tokens = self.rows * (len(self.decode_s) + 1)
        return {
            "step_ms": 1e3 * statistics.median(self.decode_s),
            "step_tok_s": self.rows / statistics.median(self.decode_s),
            "prefill_s": sum(self.prefill_s),
            "aggregate_tok_s": tokens / (sum(self.prefill_s) + sum(self.decode_s)),
        }


def lock_step(llm: LLM, rows: int, prompt: int, tokens: int, rng: random.Random) -> LockStep:
    """`rows` prompts of `prompt` ids and `tokens` answered to each, on the idle engine's pages and without it.

    ConfigError where the step or the KV pool has not that much room.
    """
    step, info = llm.step, llm.info
    batch = prepared(llm, rows, prompt + tokens)
    ids = np.array([prompt_of(llm, prompt, rng) for _ in range(rows)], np.int32)
    prefill, decode = [], []
    last = np.zeros(rows, np.int32)
    for chunks in prefill_steps(rows, prompt, info.step_tokens):
        known = np.concatenate([ids[r, start : start + count] for r, start, count in chunks])
        ending = fill(batch, chunks, known, prompt)
        begin = time.perf_counter()
        result = step.run(batch)
        prefill.append(time.perf_counter() - begin)
        last[ending] = result.ids
    for position in range(prompt, prompt + tokens - 1):
        fill(batch, [(r, position, 1) for r in range(rows)], last, 0)
        begin = time.perf_counter()
        last = step.run(batch).ids
        decode.append(time.perf_counter() - begin)
    return LockStep(rows, tuple(prefill), tuple(decode))


def prepared(llm: LLM, rows: int, length: int) -> Batch:
    """A batch for requests of `length` tokens whose pages follow each other."""
    layout, info, each = llm.step.layout, llm.info, -(-length // PAGE)
    limits = layout.limits
    if rows > min(limits.requests, limits.rows, limits.tokens) or length > info.context:
        raise ConfigError(f"a step of this engine does not hold {rows} rows of {length} tokens")
    if rows * each * len(layout.groups) > info.pages:
        raise ConfigError(f"{rows} rows of {length} tokens need more than {info.pages} KV pages; raise --kv-memory")
    batch = Batch(layout)
    batch.resize(R=rows)
    for g, name in enumerate(layout.groups):
        pages = g * rows * each + np.arange(rows * each, dtype=np.int32)
        batch[f"page_table.{name}"][:, :each] = pages.reshape(rows, each)
    return batch


def prefill_steps(rows: int, prompt: int, step_tokens: int) -> list[list[Chunk]]:
    """Prompts in order, cut where a step is full."""
    steps: list[list[Chunk]] = [[]]
    room = step_tokens
    for r in range(rows):
        start = 0
        while start < prompt:
            if room == 0:
                steps.append([])
                room = step_tokens
            count = min(room, prompt - start)
            steps[-1].append((r, start, count))
            start, room = start + count, room - count
    return steps


def fill(batch: Batch, chunks: Sequence[Chunk], ids: Array, upto: int) -> list[int]:
    """Write a step into `batch`; the requests whose tokens reach `upto` sample, and are returned."""
    request = np.repeat([r for r, _, _ in chunks], [n for _, _, n in chunks])
    positions = np.concatenate([np.arange(start, start + count) for _, start, count in chunks])
    ends = np.cumsum([count for _, _, count in chunks]) - 1
    sampling = [i for i, (_, start, count) in enumerate(chunks) if start + count >= upto]
    batch.resize(step=1, T=len(ids), L=len(sampling), C=0, E=0, H=0, M=0)
    batch["ids"][:], batch["source_step"][:], batch["request"][:] = ids, -1, request
    batch["positions"][:], batch["kv_len"][:] = positions, positions + 1
    for name in batch.layout.groups:
        page = batch[f"page_table.{name}"][request, positions // PAGE]
        batch[f"kv_slot.{name}"][:] = page * PAGE + positions % PAGE
    batch["out_rows"][:], batch["want"][:] = ends[sampling], WANT_IDS
    sampler = batch["sampler"]
    sampler["top_p"], sampler["typical_p"], sampler["repetition"] = 1, 1, 1
    sampler["target"], sampler["mask_row"] = -1, -1
    sampler["position"] = positions[ends[sampling]] + 1
    return [chunks[i][0] for i in sampling]


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest value that `part` of them do not exceed; 0 without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else 0.0
