"""The scheduler: which tokens of which sequences the next step computes, and who gives way when pages run short."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator

import msgspec

from ridgeline.engine import journal
from ridgeline.engine.lengths import Lengths
from ridgeline.engine.pace import Pace
from ridgeline.engine.pages import PagePool
from ridgeline.engine.policies import Policy, Rank
from ridgeline.engine.prefix import Node, PrefixCache
from ridgeline.engine.records import FINISHED, PAGE, Counters
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
    everything ends. What is paused gives way before all others, takes no place and is no anchor: nobody waits for it.
    """

    def __init__(
        self, pool: PagePool, cache: PrefixCache, limits: Limits, policy: Policy, clock: Callable[[], float]
    ) -> None:
        self.pool, self.cache, self.limits, self.policy, self.clock = pool, cache, limits, policy, clock
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []  # those that have pages, of which the first `limits.running` get tokens
        self.paused: list[Sequence] = []  # those whose readers are behind, with pages or without
        self.counters, self.journal = Counters(), journal.Journal()
        self.pace, self.lengths = Pace(limits.tokens, _GUESS_S * limits.tokens), Lengths()
        self._now = clock()

    def add(self, sequence: Sequence) -> None:
        """A new sequence waits; what follows it waits with it."""
        self._now = self.clock()
        for s in (sequence, *sequence.followers):
            self.policy.added(s.job)
        self._wait(sequence)

    def pause(self, s: Sequence) -> None:
        """Compute no more of a sequence until it is resumed; one that follows another pauses with that."""
        for places in (self.running, self.waiting):
            if s in places:
                places.remove(s)
                self.paused.append(s)
                self.journal.note(s.job.order, journal.PAUSED, s.shown - s.prompt_len)

    def resume(self, s: Sequence) -> None:
        """Go on with a paused sequence."""
        if s in self.paused:
            self.paused.remove(s)
            s.job.ran = self._now = self.clock()  # its reader's time is not the policy's
            self.journal.note(s.job.order, journal.RESUMED)
            if any(s.tables):
                self._run(s)
            else:
                self._wait(s)

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
                if s.wants_prompt or s.unscored:  # every row wants its token's logprob, and rows are bounded
                    known = max(s.settled - 1 - s.computed, 0)
                    more = min(more, known + rows)
                    rows -= max(more - known, 0)
                wanted = min(s.missing(s.computed + 1 + more), self.pool.available)
                self.cache.make_room(wanted)  # the system may refuse
                more = min(more, s.reach(self.pool.available) - s.computed - 1)
                budget -= more
                taken = self._take(s, s.computed + 1 + more)
                assert taken, "pages that are available could not be taken"
            samples = 1 + more == gap
            forks: tuple[Sequence, ...] = ()
            made: tuple[Copy, ...] = ()
            if samples and s.followers and not s.params.beams:  # beams fork when they see what may follow
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
        for s in self._foremost():
            if s.gap and s in self.running:
                self._take(s, s.computed + 1)
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
            if at < len(self.running) and self.running[at] is s:  # else it gave way itself, and the next has its place
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
        if not (missing := s.missing(upto)):
            return True
        while not self.cache.make_room(missing):
            victim = self._victim(s)
            if victim is None:  # the system has no memory left for the worst case that was promised
                return False
            self._preempt(victim, s)
            if victim is s:
                return False
        s.extend(self.pool, upto)
        return True

    def _preempt(self, s: Sequence, other: Sequence) -> None:
        if other is s:
            self.journal.note(s.job.order, journal.PAUSES, s.computed)
        else:
            self.journal.note(s.job.order, journal.GIVES_WAY, *other.job.order, s.computed)
        self.counters.preemptions += 1
        s.lost = s.computed
        s.release(self.cache)
        if s not in self.paused:
            self.running.remove(s)
            self._wait(s)

    def _victims(self) -> Iterator[Sequence]:
        """Who gives way, in this order: those with pages that are paused or run, the last first; not the foremost."""
        yield from (s for s in reversed(self.paused) if any(s.tables))
        first = self._foremost()
        yield from (s for s in reversed(self.running) if s not in first)

    def _victim(self, s: Sequence) -> Sequence | None:
        """Who gives way for a page of `s`, if anybody can; of the foremost only one that is short itself."""
        other = next(self._victims(), None)
        first = self._foremost()
        if other is not None or len(first) < 2:
            return other
        return s if s is not first[0] else first[-1]

    def _fork(self, s: Sequence, most: int) -> tuple[tuple[Sequence, ...], tuple[Copy, ...]]:
        """Choices that go on from the prompt that `s` now ends."""
        forks, copies = self.fork(s, s.followers, most)
        s.followers = []
        for other in forks:
            self.journal.note(other.job.order, journal.FORKS, s.choice)
        return forks, copies

    def fork(self, s: Sequence, others: list[Sequence], most: int) -> tuple[tuple[Sequence, ...], tuple[Copy, ...]]:
        """Run `others` behind the tokens of `s`, which they have too, on its pages. Those beyond the first `most`, and
        those for which there is no room, wait for pages of their own.
        """
        pages = len(s.groups) if len(s.tokens) % PAGE else 0
        room = max(min(most, self.limits.running - len(self.running), len(others)), 0)  # some are back beyond the limit
        while room and not (self._books(others[:room]) and self.cache.make_room(room * pages)):
            room -= 1
        forks = tuple(others[:room])
        copies = tuple(copy for other in forks for copy in s.fork(self.pool, other))
        for other in forks:
            self._run(other)
        for other in others[room:]:
            self._wait(other)
        return forks, copies

    def park(self, s: Sequence) -> None:
        """Take from a beam that has no children its place and pages."""
        self.running.remove(s)
        s.release(self.cache)

    def _books(self, others: list[Sequence]) -> bool:
        """Whether the worst cases of these fit beside those of what runs, if that is asked for."""
        return not self.limits.strict or self._booked + sum(s.most_pages for s in others) <= self.pool.total

    def _admit(self) -> None:
        """Start what waits, in order of rank, up to the first for which there is no place or page."""
        for s in self._callers() if self.waiting else ():
            if self.running and self._crowded(s):
                return self._waits(s, journal.WAITS_FOR_A_PLACE, self.limits.running)
            s.match = self.cache.match(s.tokens, s.match, s.settled)
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
        if s.wants_prompt or upto >= s.settled:
            return None
        page = s.tokens[at:upto]
        for r in self.running:
            ahead = r.node.depth <= node.depth and at <= r.computed and r.rank < s.rank and not r.wants_prompt
            ahead = ahead and r.shares == s.shares
            same = ahead and r.tokens[at:upto] == page
            if same and (r.node is node or r.tokens[:at] == s.tokens[:at]):
                return r
        return None

    def _crowded(self, s: Sequence) -> bool:
        """Whether running sequences, and choices that will follow them, leave no place for one that ranks so low."""
        if self._completes(s):
            return False
        most = self.limits.running
        places = 1 + sum(1 + len(r.followers) for r in self.running)
        return places > most and s.rank > self.running[min(most, len(self.running)) - 1].rank

    @property
    def anchor(self) -> Sequence:
        """The one that nobody may take pages from: the first to have come."""
        return min(self.running, key=lambda s: s.job.order)

    def _foremost(self) -> list[Sequence]:
        """The anchor, and the beams that it waits for: a search counts as one."""
        if not self.running:
            return []
        anchor = self.anchor
        if not anchor.params.beams:
            return [anchor]
        return [anchor, *(r for r in self.running if r.id == anchor.id and r is not anchor)]

    def _completes(self, s: Sequence) -> bool:
        """Whether the anchor cannot go on without this waiting beam."""
        return s.params.beams > 0 and bool(self.running) and s.id == self.anchor.id

    def _callers(self) -> list[Sequence]:
        """Who may start, first to last; more could not at once. Nobody goes before what the anchor waits for."""
        if self.running and self.anchor.params.beams:
            return sorted(self.waiting, key=lambda s: s.id != self.anchor.id)[: _LOOKS * self.limits.running]
        return [s for s in self.waiting if not s.held][: _LOOKS * self.limits.running]

    def _start(self, s: Sequence, node: Node) -> bool:
        """Give a waiting sequence the pages of `node`, if the rest of what is known of it fits."""
        victims = self._in_favour_of(s, self._shortage(s, node))
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
        return sum(s.most_pages for s in (*self.running, *(p for p in self.paused if any(p.tables))))

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
        if not self.running or self.limits.strict or self._completes(s):
            return False
        if self.policy.preempts(s.rank, self.running[-1].rank):
            return False
        shared = self.pool.used - sum(r.own for r in (*self.running, *self.paused))  # these stay while any of them runs
        most = self.lengths.peak((*self.running, s)) - node.depth * len(s.groups) + shared
        if (total := self.pool.total - self.pool.withheld) < most:
            self._waits(s, journal.WAITS_FOR_GROWTH, len(self.running), most, total)
        return most > total

    def _in_favour_of(self, s: Sequence, shortage: int) -> list[Sequence] | None:
        """Sequences, the last in rank first, that must give way for one to start; None if they may not."""
        victims: list[Sequence] = []
        missing, completes = shortage, self._completes(s)
        for r in self._victims():
            if missing <= 0 or not (completes or r in self.paused or self.policy.preempts(s.rank, r.rank)):
                break
            victims.append(r)
            missing -= r.most_pages if self.limits.strict else self._worth(r)
        if missing <= 0 or completes or not self.running:  # if all others gave way, there are pages: alone it fits
            return victims
        self._waits(s, journal.WAITS_FOR_PAGES, len(s.tokens), shortage)
        return None

    def _worth(self, s: Sequence) -> int:
        """Pages that nobody else would hold or ask for if a sequence gave way."""
        return _soon(s) + sum(page >= 0 and self.pool.is_held_once(page) for table in s.tables for page in table)

    def _waits(self, s: Sequence, why: str, *numbers: int) -> None:
        if s.waits != why:
            s.waits = why
            self.journal.note(s.job.order, why, *numbers)

    def remove(self, sequence: Sequence) -> None:
        """Forget an ended sequence and free what it held."""
        for places in (self.running, self.waiting, self.paused):
            if sequence in places:  # else it follows another choice
                places.remove(sequence)
        self.policy.ended(sequence.job)
        made = sequence.shown - sequence.prompt_len
        if made and sequence.finish in FINISHED:  # what was cut short tells nothing
            self.lengths.observe(made)
        self.journal.note(sequence.job.order, journal.ENDS, sequence.finish, made)
        sequence.release(self.cache)

    def audit(self) -> None:
        """Every page is accounted for, and the anchor can have its worst case of them."""
        self.pool.audit()
        held = {page for s in (*self.running, *self.paused) for table in s.tables for page in table if page >= 0}
        assert len(held) == self.pool.used
        assert not self.running or self.anchor.most_pages <= self.pool.total


def _rank_of(sequence: Sequence) -> Rank:
    return sequence.rank


def _soon(sequence: Sequence) -> int:
    """Pages that a running sequence has yet to take for what is known of it and a page of what follows."""
    return sequence.missing(len(sequence.tokens) + PAGE)
