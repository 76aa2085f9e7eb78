"""Fill a Batch from the chunks of a step. The only place that knows both sequences and batch fields.

What decoding writes goes number by number through `Batch.ints`: between two steps the weights pass through the caches,
and what a step costs here is the memory and code that it touches, not instructions.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Sequence as Seq

import msgspec
import numpy as np

from ridgeline.engine.params import SamplingParams
from ridgeline.engine.scheduler import Chunk
from ridgeline.engine.sequence import Copy, Sequence
from ridgeline.engine.watermark import CANDIDATES
from ridgeline.ops.attention import PAGE
from ridgeline.ops.green import MOST, SELF_HASH
from ridgeline.ops.sample import COUNT_PROMPT, PROCESSED, REPEAT_PROMPT, SAMPLER
from ridgeline.program.batch import WANT_HIDDEN, WANT_IDS, WANT_LOGPROBS, Batch, BatchLayout

_CODES = {"u8": "Q", "u4": "I", "i4": "i", "f4": "f"}
_RECORD = struct.Struct("<" + "".join(_CODES[SAMPLER[name].str[1:]] for name in SAMPLER.names or ()))
assert _RECORD.size == SAMPLER.itemsize
_INTS = SAMPLER.itemsize // 4
_PLACES = {name: offset // 4 for name, (_, offset, *_) in (SAMPLER.fields or {}).items()}
_POSITION, _TARGET, _FLAGS = _PLACES["position"], _PLACES["target"], _PLACES["flags"]
_PAST = slice(_PLACES["green_1"], _PLACES["green_1"] + MOST)
_MASK = _PLACES["mask_row"]
_LISTS = slice(_PLACES["bias_start"], _PLACES["history_stop"] + 1)  # where bias and history begin and end


class Row(msgspec.Struct, frozen=True, gc=False):
    """A row of the step's result: what follows token `token` of the step, which is at `position` of `sequence`.

    `target` >= 0: the logprob of a token that is known, or its hidden row.
    """

    sequence: Sequence
    token: int
    position: int
    target: int = -1


class Builder:
    """Fills batches of one layout."""

    def __init__(self, layout: BatchLayout) -> None:
        at = {name: slot.offset // 4 for name, slot in layout.slots.items()}
        self._ids, self._positions, self._request, self._kv_len = (
            at[name] for name in ("ids", "positions", "request", "kv_len")
        )
        self._source_step, self._source_row = at["source_step"] // 2, at["source_row"]
        self._out_rows, self._want, self._sampler = at["out_rows"], at["want"], at["sampler"]
        self._groups = [(at[f"page_table.{name}"], at[f"kv_slot.{name}"]) for name in layout.groups]
        self._tokens, self._pages = layout.limits.tokens, layout.limits.pages
        self._axes = range(layout.limits.position_axes)

    def fill(self, batch: Batch, chunks: Seq[Chunk], step: int, copies: Seq[Copy] = ()) -> list[Row]:
        """Write the step into `batch` and say what each result row means."""
        rows: list[Row] = []
        tokens = 0
        for c in chunks:
            _add_rows(c, tokens, rows)
            tokens += c.count
        batch.begin(step, tokens, len(chunks), len(rows))
        if copies:
            batch.resize(C=len(copies))
            batch["copies"][:] = copies
        start = 0
        for r, c in enumerate(chunks):
            if c.count == 1:
                self._fill_token(batch, c, r, start)
            else:
                _fill_chunk(batch, c, r, start)
            start += c.count
        for i, row in enumerate(rows):
            self._fill_row(batch, row, i)
        return rows

    def _fill_token(self, batch: Batch, c: Chunk, r: int, t: int) -> None:
        """A chunk of one token: what decoding is made of."""
        s, position, ints = c.sequence, c.start, batch.ints
        known = position < len(s.tokens)
        step, row = (-1, -1) if known else s.sources[position - len(s.tokens)]
        batch.longs[self._source_step + t] = step
        ints[self._source_row + t] = row
        ints[self._ids + t] = s.tokens[position] if known else 0
        ints[self._request + t], ints[self._kv_len + t] = r, position + 1
        for axis in self._axes:
            ints[self._positions + axis * self._tokens + t] = position
        page, slot = divmod(position, PAGE)
        for (table_at, slot_at), table in zip(self._groups, s.tables):  # noqa: B905 (a group each, always)
            assert len(table) <= self._pages, f"request {s.id} has more pages than the batch takes"
            begin = table_at + r * self._pages
            ints[begin : begin + len(table)] = table
            ints[slot_at + t] = table[page] * PAGE + slot

    def _fill_row(self, batch: Batch, row: Row, i: int) -> None:
        s, ints, given = row.sequence, batch.ints, row.target >= 0
        p = s.params
        ints[self._out_rows + i] = row.token
        if p.embed:
            ints[self._want + i] = WANT_HIDDEN
        else:
            ints[self._want + i] = WANT_IDS if p.logprobs is None and not given else WANT_IDS | WANT_LOGPROBS
        begin = self._sampler + i * _INTS
        if s.record is None:
            s.record = _record(s)
        ints[begin : begin + _INTS] = s.record
        ints[begin + _POSITION] = row.position
        target = row.target if given or not p.forced else s.forced(row.position)
        if target >= 0:
            ints[begin + _TARGET], ints[begin + _FLAGS] = target, s.record[_FLAGS] & ~PROCESSED
        elif p.logit_bias or s.history or s.bans is not None:
            ints[begin : begin + _INTS][_LISTS] = _lists(batch, s, row.position)
        if p.watermark is not None and target < 0:
            assert len(s.tokens) == row.position, "a watermark looks at tokens that are still in flight"
            past = s.tokens[: -MOST - 1 : -1]
            ints[begin : begin + _INTS][_PAST] = array("i", past + [-1] * (MOST - len(past)))
        if s.mask is not None and not given:
            masks = batch.size("M")
            batch.resize(M=masks + 1)
            batch["masks"][masks] = s.mask
            ints[begin + _MASK] = masks


def _add_rows(c: Chunk, token: int, rows: list[Row]) -> None:
    """Rows of a chunk whose first token is the step's `token`."""
    s = c.sequence
    if s.wants_prompt or s.unscored:
        last = min(c.start + c.count + 1, len(s.tokens) if s.unscored else s.prompt_len)
        first = max(c.start + 1, s.settled)  # those before were asked for, and given, before it was preempted
        rows += [Row(s, token + p - c.start - 1, p, s.tokens[p]) for p in range(first, last)]
    if c.samples:
        rows += [Row(x, token + c.count - 1, c.start + c.count) for x in (s, *c.forks)]


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


def _record(s: Sequence) -> array[int]:
    """The SAMPLER record of a sequence's rows as int32; each sets its position, and what else is its own."""
    p = s.params
    flags = (REPEAT_PROMPT if p.repetition_prompt else 0) | (COUNT_PROMPT if p.count_prompt else 0)
    flags |= PROCESSED if p.processed_logprobs else 0
    return array("i", _RECORD.pack(
        s.seed, p.temperature, p.top_p, p.min_p, p.repetition_penalty, p.frequency_penalty, p.presence_penalty,
        p.top_k, p.logprobs or 0, 0 if p.seeds else s.choice, 0, -1, flags, -1, 0, 0, 0, 0, p.typical_p, *_green(p),
    ))  # fmt: skip


def _green(p: SamplingParams) -> tuple[float, ...]:
    """The record's watermark, but for the tokens before."""
    w, none = p.watermark, [-1] * MOST
    if w is None:
        return 0, 0, 0.0, 0, 0, *none
    return w.key, w.below, w.delta, w.number, CANDIDATES if w.number == SELF_HASH else 0, *none


def _lists(batch: Batch, s: Sequence, position: int) -> array[int]:
    """Append a row's bias, bans among it, and history to the batch's shared lists: where they begin and end there."""
    e, h = batch.size("E"), batch.size("H")
    bias, history = s.params.logit_bias, s.history or {}
    if s.bans is not None:
        bias = bias | dict.fromkeys(s.bans.after(s.tokens, s.prompt_len, position - s.prompt_len), -math.inf)
    batch.resize(E=e + len(bias), H=h + len(history))
    if bias:
        batch["bias_ids"][e:] = list(bias.keys())
        batch["bias_values"][e:] = list(bias.values())
    if history:
        batch["history_ids"][h:] = list(history.keys())
        counts = np.array(list(history.values()), np.int32)
        batch["history_prompt"][h:], batch["history_output"][h:] = counts[:, 0], counts[:, 1]
    return array("i", (e, e + len(bias), h, h + len(history)))
