"""Fill a Batch from the chunks of a step. The only place that knows both sequences and batch fields."""

from __future__ import annotations

import struct
from collections.abc import Sequence as Seq

import msgspec
import numpy as np

from ridgeline.engine.scheduler import Chunk
from ridgeline.engine.sequence import Sequence
from ridgeline.ops.attention import PAGE
from ridgeline.ops.sample import COUNT_PROMPT, PROCESSED, REPEAT_PROMPT, SAMPLER
from ridgeline.program.batch import WANT_IDS, WANT_LOGPROBS, Batch

_CODES = {"u8": "Q", "u4": "I", "i4": "i", "f4": "f"}
# Packing numbers costs a tenth of assigning a numpy record.
_RECORD = struct.Struct("<" + "".join(_CODES[SAMPLER[name].str[1:]] for name in SAMPLER.names or ()))
assert _RECORD.size == SAMPLER.itemsize


class Row(msgspec.Struct, frozen=True):
    """A row of the step's result: the token of `sequence` at `position`. `target` >= 0: a prompt token's logprob."""

    sequence: Sequence
    position: int
    target: int = -1


def fill(batch: Batch, chunks: Seq[Chunk], step: int) -> list[Row]:
    """Write the step into `batch` and say what each result row means."""
    tokens = sum(c.count for c in chunks)
    rows = [row for c in chunks for row in _rows(c)]
    batch.resize(step=step, T=tokens, R=len(chunks), L=len(rows), C=0, E=0, H=0, M=0)
    first = {}
    start = 0
    for r, chunk in enumerate(chunks):
        first[id(chunk.sequence)] = start - chunk.start
        fill_chunk = _fill_token if chunk.count == 1 else _fill_chunk
        fill_chunk(batch, chunk, r, start)
        start += chunk.count
    out, want, sampler = batch.full("out_rows"), batch.full("want"), batch.full("sampler").data.cast("B")
    for i, row in enumerate(rows):
        out[i] = first[id(row.sequence)] + row.position - 1
        want[i] = WANT_IDS if row.sequence.params.logprobs is None and row.target < 0 else WANT_IDS | WANT_LOGPROBS
        _RECORD.pack_into(sampler, i * _RECORD.size, *_sampler(batch, row))
    return rows


def _rows(c: Chunk) -> list[Row]:
    s = c.sequence
    rows = []
    if s.wants_prompt:
        last = min(c.start + c.count + 1, s.prompt_len)
        rows = [Row(s, p, s.tokens[p]) for p in range(c.start + 1, last)]
    if c.samples:
        rows.append(Row(s, s.wanted))
    return rows


def _fill_token(batch: Batch, c: Chunk, r: int, t: int) -> None:
    """A chunk of one token: what decoding is made of. Numbers are set one by one, for arrays cost more."""
    s, position = c.sequence, c.start
    known = position < len(s.tokens)
    step, row = (-1, -1) if known else s.sources[position - len(s.tokens)]
    full = batch.full
    full("ids")[t] = s.tokens[position] if known else 0
    full("source_step")[t], full("source_row")[t] = step, row
    full("positions")[:, t] = position
    full("kv_len")[t], full("request")[t] = position + 1, r
    for group, table in zip(s.groups, s.tables, strict=True):
        full(f"page_table.{group.name}")[r, : len(table)] = table
        full(f"kv_slot.{group.name}")[t] = table[position // PAGE] * PAGE + position % PAGE


def _fill_chunk(batch: Batch, c: Chunk, r: int, first_row: int) -> None:
    s, stop, at = c.sequence, c.start + c.count, slice(first_row, first_row + c.count)
    known = s.tokens[c.start : stop]
    batch["ids"][at] = known + [0] * (c.count - len(known))
    batch["source_step"][at] = -1
    first = c.start + len(known)  # positions from here on are sampled by steps still in flight
    for i, (step, row) in enumerate(s.sources[first - len(s.tokens) : stop - len(s.tokens)] if first < stop else ()):
        batch["source_step"][at.start + len(known) + i] = step
        batch["source_row"][at.start + len(known) + i] = row
    positions = np.arange(c.start, stop, dtype=np.int32)
    batch["positions"][:, at] = positions
    batch["kv_len"][at] = positions + 1
    batch["request"][at] = r
    for group, table in zip(s.groups, s.tables, strict=True):
        pages = np.asarray(table, np.int32)
        batch[f"page_table.{group.name}"][r, : len(table)] = pages
        batch[f"kv_slot.{group.name}"][at] = pages[positions // PAGE] * PAGE + positions % PAGE


def _sampler(batch: Batch, row: Row) -> tuple[float, ...]:
    """The row's SAMPLER record; its bias and history are appended to the batch's shared lists."""
    s, p = row.sequence, row.sequence.params
    flags = (REPEAT_PROMPT if p.repetition_prompt else 0) | (COUNT_PROMPT if p.count_prompt else 0)
    flags |= PROCESSED if p.processed_logprobs and row.target < 0 else 0
    e, h = batch.size("E"), batch.size("H")
    given = row.target >= 0
    bias = {} if given else p.logit_bias
    history = {} if given or s.history is None else s.history
    if bias or history:
        batch.resize(E=e + len(bias), H=h + len(history))
    if bias:
        batch["bias_ids"][e:] = list(bias.keys())
        batch["bias_values"][e:] = list(bias.values())
    if history:
        batch["history_ids"][h:] = list(history.keys())
        counts = np.array(list(history.values()), np.int32)
        batch["history_prompt"][h:], batch["history_output"][h:] = counts[:, 0], counts[:, 1]
    return (
        s.seed, p.temperature, p.top_p, p.min_p, p.repetition_penalty, p.frequency_penalty, p.presence_penalty,
        p.top_k, p.logprobs or 0, s.choice, row.position, row.target, flags, -1,
        e, e + len(bias), h, h + len(history), 0,
    )  # fmt: skip
