"""The engine: step = schedule -> run -> commit. Knows sequences, pages and an executor; not clients or HTTP."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable
from itertools import zip_longest
from typing import TYPE_CHECKING

import msgspec

from ridgeline.engine.beams import Beams, Search
from ridgeline.engine.build import Builder, Row
from ridgeline.engine.executor import Executor
from ridgeline.engine.guides import Guides
from ridgeline.engine.pages import PagePool
from ridgeline.engine.policies import POLICIES
from ridgeline.engine.prefix import PrefixCache
from ridgeline.engine.records import (
    CANCELLED,
    EMBEDDED,
    EOS,
    EXPIRED,
    FAILED,
    LENGTH,
    NO_MEMORY,
    STOP,
    UNGUIDED,
    Delta,
    EngineInfo,
    StepDelta,
    Submit,
    Token,
    prefix_key,
)
from ridgeline.engine.scheduler import Chunk, Limits, Scheduler
from ridgeline.engine.sequence import Copy, Sequence, Text, sequences
from ridgeline.ops.spec import Array
from ridgeline.program.batch import Batch, BatchLayout, StepResult

if TYPE_CHECKING:
    from ridgeline.engine.kept import Kept
    from ridgeline.guidance.compiler import Compiler

_ASKS = 100  # times in a row that the system is asked for memory in vain before a request ends for it
_SPARE = 64  # deadlines that may be those of ended requests


class Flight(msgspec.Struct, frozen=True, gc=False):
    """A step on its way: what was submitted and what its rows mean."""

    ticket: int
    chunks: list[Chunk]
    rows: list[Row]
    begin: float


class Engine:
    """Continuous batching over one executor.

    `new_text(request)` makes the text side of a choice (detokeniser and stop strings); `eos` are the ids that end one.
    `observe(flight, result)` is called at every commit: metrics and cost accounting hook in there. `commit(pages)` says
    whether the system has memory for so many more pages (None: it has).
    """

    def __init__(
        self, executor: Executor, layout: BatchLayout, info: EngineInfo, eos: frozenset[int],
        new_text: Callable[[Submit], Text], observe: Callable[[Flight, StepResult], None] | None = None,
        clock: Callable[[], float] = time.monotonic, commit: Callable[[int], bool] | None = None,
        compiler: Compiler | None = None,
    ) -> None:  # fmt: skip
        self.executor, self.info, self.eos, self.new_text, self.observe = executor, info, eos, new_text, observe
        self.clock = clock
        self.pool = PagePool(info.pages, commit)
        self.cache = PrefixCache(self.pool, info.groups)
        most = layout.limits
        limits = Limits(
            info.step_tokens, most.rows, info.max_requests, most.copies, info.step_ms / 1000, info.admission == "strict"
        )
        self.scheduler = Scheduler(self.pool, self.cache, limits, POLICIES[info.policy](), clock)
        assert layout.groups == tuple(group.name for group in info.groups)
        self._builder = Builder(layout)
        self._batches = deque(Batch(layout) for _ in range(executor.depth))
        self._flights: deque[Flight] = deque()
        self._live: dict[int, list[Sequence]] = {}
        self._prompts: dict[int, list[Token]] = {}
        self._searches: dict[int, Beams] = {}
        self.compiler, self.guides = compiler, Guides(compiler)
        self._windows = any(group.window for group in info.groups)
        self._copies: list[Copy] = []  # of pages that choices no longer share: the next step's
        self._deadlines: list[tuple[float, int, bool]] = []  # heap of (when, request, whether its first token is due)
        self._ends: list[Delta] = []  # ends that no step commits: cancellations
        self._reading: list[tuple[int, int, int]] = []  # what the step says of prompts
        self._refused = 0  # steps in a row that found no memory
        self.step_number = 0
        self._committed = 0.0  # when the last step was
        self.kept: Kept | None = None  # where the prefix cache is kept between runs

    def submit(self, request: Submit) -> None:
        """Queue a request that admission accepted (records.check_room)."""
        assert request.id not in self._live, f"request {request.id} is submitted twice"
        texts = [self.new_text(request) for _ in range(request.params.width)]
        search = Search(request.params, request.limit, self.eos) if request.params.beams else None
        if search is not None:
            params = msgspec.structs.replace(request.params, temperature=0, logprobs=search.wanted)
            request = msgspec.structs.replace(request, params=params)
        root = self.cache.root(prefix_key(request.terms, self.info))
        chosen = sequences(request, self.info, texts, self.eos, root, self.clock())
        self._live[request.id] = chosen
        if search is not None:
            self._searches[request.id] = Beams(search, chosen)
        if not any(request.emitted):
            chosen[0].followers = chosen[1:]
        for s in chosen if any(request.emitted) else chosen[:1]:
            self.scheduler.add(s)
        if request.params.grammar is not None:
            self.guides.begin(chosen)
        if len(self._deadlines) > 2 * len(self._live) + _SPARE:
            self._deadlines = [d for d in self._deadlines if d[1] in self._live]
            heapq.heapify(self._deadlines)
        now, terms = self.clock(), request.terms
        for seconds, waits in ((terms.wait_s, True), (terms.total_s, False)):
            if seconds:
                heapq.heappush(self._deadlines, (now + seconds, request.id, waits))

    def cancel(self, id: int, reason: str = CANCELLED) -> None:
        """End what is left of a request now; its pages are free before the next step. Unknown ids are ended ones."""
        for s in list(self._live.get(id, ())):
            self._end(s, reason)
            if s.choice < s.params.n:  # else it is a beam that nobody knows of
                self._ends.append(Delta(id, s.choice, (), s.text.flush(), reason))

    def pause(self, id: int) -> None:
        """Compute no more of a request until it is resumed or cancelled; its time runs on. A search is not paused: it
        delivers nothing before its end.
        """
        for s in self._live.get(id, ()) if id not in self._searches else ():
            self.scheduler.pause(s)

    def resume(self, id: int) -> None:
        for s in self._live.get(id, ()):
            self.scheduler.resume(s)

    def close(self) -> None:
        """End what still runs, commit what is in flight, and keep the prefix cache if there is a place for it."""
        for id in list(self._live):
            self.cancel(id)
        while not self.idle:
            self.step()
        if self.kept is not None:
            self.kept.save(self.cache)

    def why(self, id: int) -> list[str]:
        """What was decided for a request and why, in words; as far back as is remembered."""
        return self.scheduler.journal.why(id)

    def _expire(self) -> None:
        """End requests that have waited too long for their first token, or for their last."""
        now = self.clock()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, id, waits = heapq.heappop(self._deadlines)
            if not waits or all(s.shown == s.prompt_len for s in self._live.get(id, ())):
                self.cancel(id, EXPIRED)

    @property
    def idle(self) -> bool:
        """Nothing to run, in flight, or to report."""
        return not self._live and not self._flights and not self._ends

    @property
    def resting(self) -> bool:
        """Nothing to run, in flight, or to report, until a message or a deadline: what there is is paused."""
        work = self._flights or self._ends or self.scheduler.running or self.scheduler.waiting
        return not (work or self.guides.pending)

    def _starves(self, chunks: list[Chunk]) -> bool:
        """Whether nothing can run because the system has no memory for what was promised."""
        idle = not chunks and not self._flights and not self.guides.pending
        return idle and bool(self.pool.withheld and self.scheduler.running)

    def step(self) -> StepDelta:
        """Schedule and submit one batch if there is work, then commit the oldest one if the pipeline is full."""
        if self._deadlines:
            self._expire()
        self._ends += self._guided(wait=False)
        chunks = self.scheduler.schedule() if len(self._flights) < self.executor.depth else []
        if chunks:
            self._submit(chunks)
        self._refused = self._refused + 1 if self._starves(chunks) else 0
        if self._refused > _ASKS:
            self.cancel(self.scheduler.anchor.id, NO_MEMORY)
            self._refused = 0
        deltas: list[Delta] = []
        self._reading.clear()
        if self._flights and (len(self._flights) == self.executor.depth or not chunks):
            deltas = self._commit(self._flights.popleft())
        deltas += self._guided(wait=True, alone=not chunks and not self._flights)
        if self._ends:
            deltas, self._ends = self._ends + deltas, []
        pool, s = self.pool, self.scheduler
        return StepDelta(
            self.step_number, tuple(deltas), len(s.running), len(s.waiting), pool.used, pool.cached, len(s.paused),
            s.counters, s.journal.take(), pool.withheld, tuple(self._reading),
        )  # fmt: skip

    def _submit(self, chunks: list[Chunk]) -> None:
        self.step_number += 1
        batch = self._batches[0]
        self._batches.rotate(-1)
        rows = self._builder.fill(batch, chunks, self.step_number, self._copies)
        self._copies.clear()
        for i, row in enumerate(rows):
            if row.target < 0:
                row.sequence.sources.append((self.step_number, i))
        begin, new = self.clock(), 0
        for c in chunks:
            s = c.sequence
            s.computed = c.start + c.count
            if s.began is None:
                s.began = begin
                new += s.choice == 0  # the others go on from its prompt
            self._copies += c.copies
        self.scheduler.counters.joins += 0 < new < len(chunks)
        self._flights.append(Flight(self.executor.submit(batch), chunks, rows, begin))

    def _commit(self, flight: Flight) -> list[Delta]:
        """Publish the step's tokens, end what has ended, free what is behind windows. Late rows are discarded."""
        result = self.executor.collect(flight.ticket)
        tokens = sum(c.count for c in flight.chunks)
        now, before = self.clock(), max(flight.begin, self._committed)  # another may have been in flight until then
        self.scheduler.pace.observe(tokens, now - before, tokens > len(flight.chunks))
        self._committed = now
        ids: list[int] = result.ids.tolist()
        deltas, searches = [], dict[int, Beams]()
        for i, row in enumerate(flight.rows):
            s = row.sequence
            if s.finish is not None:
                continue
            if s.embedding is not None:
                assert result.hidden is not None
                deltas += self._embed(s, row, result.hidden[i])
                continue
            wants = row.target >= 0 or s.params.logprobs is not None
            token = _scored(result, i, s) if wants else Token(ids[i])
            if row.target >= 0:
                if row.position == s.settled:  # else it was preempted, and has had this one before
                    deltas += self._score(s, token)
                continue
            s.sources.pop(0)
            if s.params.grammar is not None and token.id >= 0:
                self.guides.feed(s, token)
            elif s.params.beams:
                searches[s.id] = self._searches[s.id]
                searches[s.id].add(s, token)
            else:
                deltas.append(self._accept(s, token))
        for c in flight.chunks:
            s = c.sequence
            if not c.samples:
                self._reading.append((s.id, c.start + c.count, len(s.tokens)))
            if s.finish is None:
                s.publish(self.cache)
                if self._windows:
                    s.slide(self.pool)
        for id, beams in searches.items():
            if beams.ready:
                deltas += self._advance(id, beams)
        steps = self.scheduler.counters.reading if tokens > len(flight.chunks) else self.scheduler.counters.answering
        steps.add(now - before, self.clock() - now)
        if self.observe is not None:
            self.observe(flight, result)
        return deltas

    def _advance(self, id: int, beams: Beams) -> list[Delta]:
        """Let a search make its step, or end with all of its answers."""
        copies = beams.advance(self.scheduler, self.scheduler.limits.copies - len(self._copies))
        if copies is not None:
            self._copies += copies
            return []
        deltas: list[Delta] = []
        lines = list(self._live[id])
        cached, ran = lines[0].cached or 0, self._ran(lines[0])
        for s, answer in zip_longest(lines, beams.search.answers):
            if answer is None:  # no beam can go on: logits that are not numbers, or all likely tokens end too soon
                self._end(s, FAILED)
                deltas.append(Delta(id, s.choice, (), "", FAILED))
                continue
            s.tokens[s.prompt_len :] = [token.id for token in answer.tokens]
            shown = answer.tokens if answer.finish == LENGTH else answer.tokens[:-1]
            text = "".join([s.text.push(token.id)[0] for token in shown]) + s.text.flush()
            self._end(s, answer.finish)
            deltas.append(Delta(id, s.choice, tuple(answer.tokens), text, answer.finish, None, cached, b"", ran))
        return deltas[: lines[0].params.n]

    def _guided(self, wait: bool, alone: bool = False) -> list[Delta]:
        """What grammars made of sampled tokens, as far as that is known."""
        deltas: list[Delta] = []
        for outcome in self.guides.take(wait, alone):
            s, token, move = outcome.sequence, outcome.token, outcome.move
            if s.finish is not None:
                continue
            s.mask, s.unguided = move.mask, bool(move.failed)
            sampled = token is not None and move.tokens[:1] == (token.id,)
            for i, id in enumerate(move.tokens):
                if s.finish is not None:
                    break
                if token is not None and sampled and i == 0:
                    deltas.append(self._accept(s, token))
                elif s.params.logprobs is None:
                    deltas.append(self._accept(s, Token(id)))
                else:
                    s.append(id)
                    s.unscored += 1
            if s.finish is None and token is not None and not sampled and s.unscored == len(move.tokens):
                s.release(self.cache)  # its last row is computed again: for another token, or for that one's logprob
            deltas += self._stranded(s)
        return deltas

    def _stranded(self, s: Sequence) -> list[Delta]:
        """End one that has delivered all it had where no guide knows what follows."""
        if s.finish is not None or s.unscored or not s.unguided:
            return []
        self._end(s, UNGUIDED)
        return [Delta(s.id, s.choice, (), s.text.flush(), UNGUIDED)]

    def _score(self, s: Sequence, token: Token) -> list[Delta]:
        """Take the logprobs of a token that was known before: the prompt's are delivered with the first that is not."""
        if s.unscored:
            told = token.logprob == token.logprob  # else its logits are not numbers, of which none is sampled either
            return [self._accept(s, token if told else Token(-1)), *self._stranded(s)]
        self._prompts.setdefault(s.id, []).append(token)
        s.scored += 1
        return []

    def _accept(self, s: Sequence, token: Token) -> Delta:
        if token.id < 0:  # nothing may be sampled: a dead end of masks, or logits that are not numbers
            self._end(s, FAILED)
            return Delta(s.id, s.choice, (), s.text.flush(), FAILED)
        if s.unscored:
            s.unscored -= 1
        else:
            s.append(token.id)
        p, made = s.params, s.shown - s.prompt_len
        may_end = made > p.min_tokens  # where not, only a forced token can be an end token
        ends_here = may_end and token.id in p.stop_token_ids
        is_eos = may_end and token.id in self.eos and not p.ignore_eos
        text, stopped = ("", False) if ends_here or is_eos else s.text.push(token.id)
        finish = None
        if stopped or ends_here:
            finish = STOP
        elif is_eos:
            finish = EOS
        elif s.shown >= s.limit:
            finish = LENGTH
        cached, ran = (s.cached or 0, self._ran(s)) if made == 1 else (0, 0.0)
        prompt = tuple(self._prompts.pop(s.id)) if s.wants_prompt and s.id in self._prompts else None
        if s.wants_prompt:
            prompt, s.wants_prompt = prompt or (), False
        if finish is not None:
            text += s.text.flush()
            self._end(s, finish)
        return Delta(s.id, s.choice, (token,), text, finish, prompt, cached, b"", ran)

    def _ran(self, s: Sequence) -> float:
        return 0.0 if s.began is None else self.clock() - s.began

    def _embed(self, s: Sequence, row: Row, hidden: Array) -> list[Delta]:
        """Take a row of an embedding; the last one ends it."""
        assert s.embedding is not None
        if not s.embedding.every or row.position == s.scored + 1:  # else it was preempted, and has had this one before
            s.embedding.add(hidden)
            s.scored = row.position
        if row.target >= 0:
            return []
        s.sources.pop(0)
        self._end(s, EMBEDDED)
        return [Delta(s.id, s.choice, (), "", EMBEDDED, None, s.cached or 0, s.embedding.vector, self._ran(s))]

    def _end(self, s: Sequence, finish: str) -> None:
        assert s.finish is None, f"request {s.id} choice {s.choice} ends twice"
        s.finish = finish
        self.scheduler.remove(s)
        self._live[s.id].remove(s)
        if not self._live[s.id]:
            del self._live[s.id]
            self._prompts.pop(s.id, None)
            self._searches.pop(s.id, None)


def _scored(result: StepResult, row: int, s: Sequence) -> Token:
    n = s.params.logprobs or 0
    assert result.logprobs is not None and result.top_ids is not None and result.top_logprobs is not None
    pairs = zip(result.top_ids[row, :n].tolist(), result.top_logprobs[row, :n].tolist(), strict=True)
    return Token(int(result.ids[row]), float(result.logprobs[row]), tuple(p for p in pairs if p[0] >= 0))
