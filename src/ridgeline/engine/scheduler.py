"""The scheduler: which tokens of which sequences the next step computes, and who gives way when pages run short."""

from __future__ import annotations

import bisect
from collections.abc import Callable

import msgspec

from ridgeline.engine import journal
from ridgeline.engine.lengths import Lengths
from ridgeline.engine.pace import Pace
from ridgeline.engine.pages import PagePool
from ridgeline.engine.policies import Policy, Rank
from ridgeline.engine.prefix import Node, PrefixCache
from ridgeline.engine.records import PAGE, Counters
from ridgeline.engine.sequence import Copy, Sequence

_GUESS_S = 1e-3  # of a token, before the first step has shown better
_LOOKS = 4  # times as many as can run are looked at in a step: some wait for a prefix, and others may go past them


class Chunk(msgspec.Struct, frozen=True, gc=False):  # it closes no cycles
    """Positions start..start+count-1 of a sequence, computed in one step.

    `samples`: they reach the last token known or in flight, so that the last row samples the next one. `forks`: choices
    that sample their first token from that row too, and then share this sequence's pages; `copies` are of what they
    cannot share, for the next step to make first.
    """

    sequence: Sequence
    start: int
    count: int
    samples: bool
    forks: tuple[Sequence, ...] = ()
    copies: tuple[Copy, ...] = ()


class Limits(msgspec.Struct, frozen=True):
    """Most tokens, result rows, sequences and copies of a step; `strict` starts only what is never short of pages."""

    tokens: int
    rows: int
    running: int
    copies: int
    step_s: float = 0.0  # how long a step may take that has both prompts and answers in progress; 0: any time
    strict: bool = False


class Scheduler:
    """Waiting and running sequences, ranked by a policy, and the rules that share tokens and pages between them.

    Each running sequence first gets one token, in order of rank, so that long prompts never stall an answer in
    progress; what is left of the budget then closes the remaining gaps, again in order. A sequence starts when its
    known tokens fit, so the pages that running ones will still ask for may not all be there. Then the last in rank
    gives its pages up and is computed again later. The first to have come of those with pages, the anchor, never does:
    since its worst case alone fits the pool (records.check_room), it ends, and then the next is the anchor. So
    everything ends.
    """

    def __init__(
        self, pool: PagePool, cache: PrefixCache, limits: Limits, policy: Policy, clock: Callable[[], float]
    ) -> None:
        self.pool, self.cache, self.limits, self.policy, self.clock = pool, cache, limits, policy, clock
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []  # those that have pages, of which the first `limits.running` get tokens
        self.counters = Counters()
        self.journal = journal.Journal()
        self.pace, self.lengths = Pace(limits.tokens, _GUESS_S * limits.tokens), Lengths()
        self._now = clock()

    def add(self, sequence: Sequence) -> None:
        """A new sequence waits; what follows it waits with it."""
        self._now = self.clock()
        for s in (sequence, *sequence.followers):
            self.policy.added(s.job)
        self._wait(sequence)

    def schedule(self) -> list[Chunk]:
        """Chunks of the next step, with pages taken for them; empty if nothing can run."""
        if self.policy.dynamic:
            self._now = self.clock()
            self._rank(self.waiting)
            self._rank(self.running)
        self._admit()
        ready = self._ready()
        budget = self._budget(ready)
        rows, copies = self.limits.rows - len(ready), self.limits.copies
        chunks = []
        for s, gap in ready:
            more = min(gap - 1, budget)
            if more:
                if s.wants_prompt:  # every prompt row wants its logprob, and rows are bounded
                    more = min(more, rows)
                    rows -= more
                more = min(more, s.reach(self.pool.available) - s.computed - 1)
                budget -= more
                self._take(s, s.computed + 1 + more)
            samples = 1 + more == gap
            forks: tuple[Sequence, ...] = ()
            made: tuple[Copy, ...] = ()
            if samples and s.followers:
                forks, made = self._fork(s, min(rows, copies // len(s.groups)))
                rows, copies = rows - len(forks), copies - len(made)
            self.policy.charge(s.job, 1 + more, self._now)
            chunks.append(Chunk(s, s.computed, 1 + more, samples, forks, made))
        return chunks

    def _rank(self, sequences: list[Sequence]) -> None:
        for s in sequences:
            s.rank = self.policy.rank(s.job, self._now)
        sequences.sort(key=_rank_of)

    def _wait(self, s: Sequence) -> None:
        s.rank = self.policy.rank(s.job, self._now)
        bisect.insort(self.waiting, s, key=_rank_of)

    def _run(self, s: Sequence) -> None:
        s.rank = self.policy.rank(s.job, self._now)
        bisect.insort(self.running, s, key=_rank_of)

    def _ready(self) -> list[tuple[Sequence, int]]:
        """Running sequences that can have a token, which has its page, with their gaps."""
        # The anchor may rank below others, and takes pages from them before they have had tokens in this step.
        if self.running and (first := self.anchor).gap:
            self._take(first, first.computed + 1)
        ready: list[tuple[Sequence, int]] = []
        at = 0
        most = min(self.limits.tokens, self.limits.running)
        reader: Sequence | None = None  # of a prompt, the first in rank
        while at < len(self.running) and len(ready) < most:  # those behind may be preempted meanwhile
            s = self.running[at]
            gap = s.gap
            waits = reader is not None and self.policy.yields(s.job, reader.rank, self._now)
            if gap and not waits and self._take(s, s.computed + 1):
                ready.append((s, gap))
                reader = s if reader is None and gap > 1 else reader
            at += 1
        return ready

    def _budget(self, ready: list[tuple[Sequence, int]]) -> int:
        """Tokens of the step beyond the first of each sequence: as many as there is room for, or time."""
        room, decodes = self.limits.tokens - len(ready), sum(gap == 1 for _, gap in ready)
        if not self.limits.step_s or not 0 < decodes < len(ready):
            return room
        prompts = len(ready) - decodes
        return max(0, min(room, self.pace.tokens(decodes, self.limits.step_s) - prompts))

    def _take(self, s: Sequence, upto: int) -> bool:
        """Pages for positions below `upto`, if others must give up theirs for it; False if `s` itself had to."""
        missing = s.missing(upto)
        while self.pool.free < missing and not self.cache.make_room(missing):
            anchor = self.anchor
            victim = next(other for other in reversed(self.running) if other is not anchor)
            self._preempt(victim, s)
            if victim is s:
                return False
        if missing:
            s.extend(self.pool, upto)
        return True

    def _preempt(self, s: Sequence, other: Sequence) -> None:
        if other is s:
            self.journal.note(s.job.order, journal.PAUSES, s.computed)
        else:
            self.journal.note(s.job.order, journal.GIVES_WAY, *other.job.order, s.computed)
        self.counters.preemptions += 1
        s.lost = s.computed
        self.running.remove(s)
        s.release(self.cache)
        self._wait(s)

    def _fork(self, s: Sequence, most: int) -> tuple[tuple[Sequence, ...], tuple[Copy, ...]]:
        """Choices that go on from the prompt that `s` now ends; those for which there is no room wait for their own."""
        pages = len(s.groups) if s.prompt_len % PAGE else 0
        room = min(most, self.limits.running - len(self.running), len(s.followers))
        if self.limits.strict:
            room = min(room, (self.pool.total - self._booked) // s.most_pages)
        room = max(room, 0)  # some that gave way may be back beyond the limit
        while room and not self.cache.make_room(room * pages):
            room -= 1
        forks, rest, s.followers = tuple(s.followers[:room]), s.followers[room:], []
        copies = tuple(copy for other in forks for copy in s.fork(self.pool, other))
        for other in forks:
            self.journal.note(other.job.order, journal.FORKS, s.choice)
            self._run(other)
        for other in rest:
            self._wait(other)
        return forks, copies

    def _admit(self) -> None:
        """Start what waits, in order of rank, up to the first for which there is no place or page."""
        for s in self.waiting[: _LOOKS * self.limits.running]:
            if self.running and self._crowded(s):
                return self._waits(s, journal.WAITS_FOR_A_PLACE, self.limits.running)
            if not s.wants_prompt:
                s.match = self.cache.match(s.tokens, s.match)
            node = self.cache.usable(s.match)
            if (reader := self._reader(s, node)) is not None:
                self._waits(s, journal.WAITS_FOR_A_PREFIX, *reader.job.order)
            elif self._start(s, node):
                self.waiting.remove(s)
                self._run(s)
            else:
                return

    def _reader(self, s: Sequence, node: Node) -> Sequence | None:
        """A running sequence, ahead in rank, that is about to compute the next page `s` needs: worth waiting for."""
        at, upto = node.depth * PAGE, (node.depth + 1) * PAGE
        if s.wants_prompt or upto >= len(s.tokens):
            return None
        page = s.tokens[at:upto]
        for r in self.running:
            ahead = r.node.depth <= node.depth and at <= r.computed and r.rank < s.rank and not r.wants_prompt
            ahead = ahead and r.job.tenant == s.job.tenant
            same = ahead and r.tokens[at:upto] == page
            if same and (r.node is node or r.tokens[:at] == s.tokens[:at]):
                return r
        return None

    def _crowded(self, s: Sequence) -> bool:
        """Whether running sequences, and choices that will follow them, leave no place for one that ranks so low."""
        most = self.limits.running
        places = 1 + sum(1 + len(r.followers) for r in self.running)
        return places > most and s.rank > self.running[min(most, len(self.running)) - 1].rank

    @property
    def anchor(self) -> Sequence:
        """The one that nobody may take pages from: the first to have come."""
        return min(self.running, key=lambda s: s.job.order)

    def _start(self, s: Sequence, node: Node) -> bool:
        """Give a waiting sequence the pages of `node`, if the rest of what is known of it fits."""
        victims = self._in_favour_of(s, self._shortage(s, node)) if self.running else []
        if victims is None or (not victims and self._outgrows(s, node)):
            return False
        for victim in victims:
            self._preempt(victim, s)
        s.adopt(self.pool, node)
        if s.cached is None:
            s.cached = s.computed
        self.journal.note(s.job.order, journal.STARTS, s.computed, len(s.tokens))
        s.waits = ""
        self.counters.cached_tokens += s.computed
        self.counters.recomputed_tokens += max(s.lost - s.computed, 0)
        s.lost = 0
        self.cache.touch(node)
        return True

    @property
    def _booked(self) -> int:
        return sum(s.most_pages for s in self.running)

    def _shortage(self, s: Sequence, node: Node) -> int:
        """How many pages are missing for a waiting sequence to start behind `node`; 0 or less if none."""
        if self.limits.strict:
            return self._booked + s.most_pages - self.pool.total
        pages = (-(-len(s.tokens) // PAGE) - node.depth) * len(s.groups)
        revived = sum(page >= 0 and self.pool.is_cached(page) for step in node.path() for page in step.pages)
        # What runs has yet to take pages for what is known of it, and soon one more.
        return pages + revived + sum(map(_soon, self.running)) - self.pool.available

    def _outgrows(self, s: Sequence, node: Node) -> bool:
        """Whether a waiting sequence and what runs will grow to more than the pool, and it could not take from them."""
        if not self.running or self.limits.strict or self.policy.preempts(s.rank, self.running[-1].rank):
            return False
        shared = self.pool.used - sum(r.own for r in self.running)  # these stay while any of them runs
        most = self.lengths.peak((*self.running, s)) - node.depth * len(s.groups) + shared
        if most > self.pool.total:
            self._waits(s, journal.WAITS_FOR_GROWTH, len(self.running), most, self.pool.total)
        return most > self.pool.total

    def _in_favour_of(self, s: Sequence, shortage: int) -> list[Sequence] | None:
        """Running sequences, the last in rank first, that must give way for one to start; None if they may not."""
        victims: list[Sequence] = []
        missing = shortage
        for r in reversed(self.running):
            if missing <= 0 or not self.policy.preempts(s.rank, r.rank):
                break
            if r is not self.anchor:
                victims.append(r)
                missing -= r.most_pages if self.limits.strict else self._worth(r)
        if missing <= 0:
            return victims
        self._waits(s, journal.WAITS_FOR_PAGES, len(s.tokens), shortage)
        return None

    def _worth(self, s: Sequence) -> int:
        """Pages that nobody else would hold or ask for if a sequence gave way."""
        return _soon(s) + sum(page >= 0 and self.pool.is_held_once(page) for table in s.tables for page in table)

    def _waits(self, s: Sequence, why: str, *numbers: object) -> None:
        if s.waits != why:
            s.waits = why
            self.journal.note(s.job.order, why, *numbers)

    def remove(self, sequence: Sequence) -> None:
        """Forget an ended sequence and free what it held."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)  # else it follows another choice
        self.policy.ended(sequence.job)
        made = len(sequence.tokens) - sequence.prompt_len
        if made:
            self.lengths.observe(made)
        self.journal.note(sequence.job.order, journal.ENDS, sequence.finish, made)
        sequence.release(self.cache)

    def audit(self) -> None:
        """Every page is accounted for, and the anchor can have its worst case of them."""
        self.pool.audit()
        held = {page for s in self.running for table in s.tables for page in table if page >= 0}
        assert len(held) == self.pool.used
        assert not self.running or self.anchor.most_pages <= self.pool.total


def _rank_of(sequence: Sequence) -> Rank:
    return sequence.rank


def _soon(sequence: Sequence) -> int:
    """Pages that a running sequence has yet to take for what is known of it and a page of what follows."""
    return sequence.missing(len(sequence.tokens) + PAGE)
