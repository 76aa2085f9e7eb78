"""Guides of sequences with a grammar: what each sampled token leads to is found in threads beside the steps.

A sequence whose next mask is not there yet is left out of a step; the others go on. Owns the threads and who waits for
them; what may follow is guidance's to say. Must not know batches or steps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec

from ridgeline.engine.records import Token
from ridgeline.engine.sequence import Sequence
from ridgeline.guidance.compiler import Compiled, Compiler, thread
from ridgeline.guidance.guide import Guide, Move

_EACH_S = 3e-4  # that others wait for a guide in time, in which it answers almost always
_MOST_S, _SHARE = 8 * _EACH_S, 1 / 8  # of one answer, and what it counts, in what a guide usually takes
_REST, _LONGEST_REST_S = 4, 0.01  # times what it took that a late answer is rested from, while others compute
_IDLE_S = 0.02  # longest wait where nothing else can run


class Watched:
    """A sequence's guide, and the seconds that it usually takes: who is late as a rule is not waited for."""

    __slots__ = ("guide", "usual")

    def __init__(self, guide: Guide) -> None:
        self.guide, self.usual = guide, 0.0

    def took(self, seconds: float) -> None:
        self.usual += (min(seconds, _MOST_S) - self.usual) * _SHARE

    @property
    def late(self) -> bool:
        return self.usual >= _EACH_S


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What a sampled token led to; without one, what an answer may begin or go on with, and its guide."""

    sequence: Sequence
    token: Token | None
    move: Move
    opened: Watched | None = None


class Guides:
    """`begin` and `feed` ask; `take` gives what is ready. All are the engine's thread's.

    A guide that is late moves to a thread of its like, which gives way to all others, until it has been quick for a
    while: nobody waits for it there, and between its answers the cores are the steps' own. So does one that has to
    search, for that answer.
    """

    def __init__(self, compiler: Compiler | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._compiler, self._clock = compiler, clock
        self._quick: ThreadPoolExecutor | None = None
        self._slow: ThreadPoolExecutor | None = None
        self._ready: list[Outcome] = []
        self._changed = threading.Condition()
        self._alone = threading.Event()  # nothing else can run
        self._pending = self._awaited = 0  # asked and not taken; of them, those that are waited for
        self.times: list[float] | None = None  # of each answer, or try of one, where somebody measures

    @property
    def pending(self) -> bool:
        """Whether something was asked that was not taken."""
        return self._pending > 0

    def begin(self, sequences: list[Sequence]) -> None:
        """Compile the grammar of a request and say what its choices may begin with, or what may follow the tokens that
        they have had."""
        assert self._compiler is not None, "the client lets no grammar pass that cannot be followed"
        if self._quick is None:
            self._quick, self._slow = thread("ridgeline-masks"), thread("ridgeline-late-masks", nice=19)
        grammar = sequences[0].params.grammar
        assert grammar is not None
        emitted = [tuple(s.tokens[s.prompt_len :]) for s in sequences]
        for s in sequences:
            self._hold(s)

        def opened(compiled: Future[Compiled]) -> None:
            assert self._slow is not None
            self._slow.submit(self._open, list(zip(sequences, emitted, strict=True)), compiled)

        self._compiler.compile(grammar).add_done_callback(opened)

    def feed(self, s: Sequence, token: Token) -> None:
        """Say what a sampled token leads to."""
        assert self._quick is not None and self._slow is not None and s.guide is not None
        self._hold(s)
        if s.guide.late:
            self._slow.submit(self._advance, s, s.guide, token, False)
        else:
            with self._changed:
                self._awaited += 1
            self._quick.submit(self._advance, s, s.guide, token, True)

    def take(self, wait: bool, alone: bool = False) -> list[Outcome]:
        """What is ready. `wait` for those that are in time as a rule; `alone`: nothing else can run, so a little longer
        for any."""
        if not self._pending:
            return []
        if wait and alone != self._alone.is_set():
            self._alone.set() if alone else self._alone.clear()
        with self._changed:
            if alone:
                self._changed.wait_for(lambda: bool(self._ready), _IDLE_S)
            if wait and self._awaited:
                self._changed.wait_for(lambda: not self._awaited, _EACH_S * self._awaited)
            ready, self._ready = self._ready, []
        self._pending -= len(ready)
        for outcome in ready:
            s = outcome.sequence
            s.held, s.guide = False, outcome.opened or s.guide
        return ready

    def _hold(self, s: Sequence) -> None:
        s.held, s.mask = True, None
        self._pending += 1

    def _open(self, sequences: list[tuple[Sequence, tuple[int, ...]]], compiled: Future[Compiled]) -> None:
        found = []
        for s, emitted in sequences:
            try:
                jumps = s.params.logprobs is None or not s.params.processed_logprobs  # whose masks no other row has
                watched = Watched(compiled.result().guide(s.limit - s.prompt_len, jumps))
                found.append(Outcome(s, None, watched.guide.replay(emitted), watched))
            except Exception as wrong:
                found.append(Outcome(s, None, Move((), failed=str(wrong))))
        with self._changed:
            self._ready += found  # together: choices fork from the first, with their masks
            self._changed.notify_all()

    def _advance(self, s: Sequence, watched: Watched, token: Token, awaited: bool) -> None:
        begin = self._clock()
        try:
            move = watched.guide.glance(token.id, patient=not awaited)
        except Exception as wrong:
            move = Move((), failed=str(wrong))
        took = self._clock() - begin
        if self.times is not None:
            self.times.append(took)
        if awaited or watched.late:
            watched.took(took)
        if move is None:
            assert self._slow is not None
            self._slow.submit(self._advance, s, watched, token, False)
        with self._changed:
            if move is not None:
                self._ready.append(Outcome(s, token, move))
            self._awaited -= awaited
            self._changed.notify_all()
        if not awaited and took >= _EACH_S:
            self._alone.wait(min(_REST * took, _LONGEST_REST_S))
