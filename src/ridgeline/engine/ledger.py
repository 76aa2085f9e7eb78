"""Ledger: all live requests of a client, which it accepts or refuses, and what a replay of each needs.

The only place that accepts, refuses and ends. Thread-safe. Must not know engines beyond what crosses to them.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from ridgeline.engine import journal
from ridgeline.engine.params import SamplingParams, check_params
from ridgeline.engine.records import (
    CANCELLED,
    FAILED,
    Cancel,
    Delta,
    EngineInfo,
    Note,
    Pause,
    Resume,
    StepDelta,
    Submit,
    Terms,
    ToEngine,
    check_prompt,
)
from ridgeline.errors import Overloaded

Sink = Callable[[Delta], None]

_LONGEST_RETRY_S = 60.0
_SUSPECT, _GUILTY = 2, 3  # engines that died with a request before it is sent without others like it; before it fails


@dataclass
class Failures:
    """Steps with which an engine was lost: those that read prompts, as far as is known, and others."""

    reading: int = 0
    answering: int = 0


@dataclass(frozen=True, eq=False)
class Places:
    """Places booked for `count` choices of requests to come."""

    count: int


@dataclass(slots=True)
class Live:
    """A request that was accepted and has not ended: what a replay needs, and where its deltas go.

    `deaths` counts the engines that died while they had it, since its last token.
    """

    request: Submit
    sink: Sink
    emitted: list[list[int]]
    done: set[int] = field(default_factory=set)
    prompt_given: bool = False
    cancelled: str = ""  # the reason
    paused: bool = False
    deaths: int = 0
    accepted: float = 0.0  # when
    read: tuple[int, int] = (0, 0)  # tokens of its prompt, if that takes some steps
    places: Places | None = None  # that it has taken some of

    @property
    def open(self) -> int:
        """Its choices that have not ended; of a search, its beams."""
        return self.request.params.width - len(self.done)

    def replay(self, now: float) -> Submit:
        """The same request, continued after what was already delivered."""
        params = self.request.params
        if self.prompt_given:
            params = msgspec.structs.replace(params, prompt_logprobs=False)
        emitted = tuple(tuple(e) for e in self.emitted)
        done, terms = tuple(sorted(self.done)), self._left(now, any(emitted))
        return msgspec.structs.replace(self.request, params=params, emitted=emitted, done=done, terms=terms)

    def _left(self, now: float, begun: bool) -> Terms:
        """Its terms with the time that is left."""
        terms, gone = self.request.terms, now - self.accepted
        left = {
            name: max(seconds - gone, 1e-3) if (seconds := getattr(terms, name)) else 0.0
            for name in ("wait_s", "total_s")
        }
        return msgspec.structs.replace(terms, **left | ({"wait_s": 0.0} if begun else {}))


class Ledger:
    """All live requests of a client, and the places that are booked for more."""

    def __init__(self, info: EngineInfo, clock: Callable[[], float] = time.monotonic) -> None:
        self.info, self._clock = info, clock
        self._live: dict[int, Live] = {}
        self._unsent: dict[int, Live] = {}  # those of _live that the engine does not know
        self._orders: list[Cancel | Pause | Resume] = []  # for requests that it knows
        self._booked: set[Places] = set()
        self._lock = threading.Lock()
        self.failures = Failures()
        self._last = 0
        self.journal = journal.Journal()
        self.last = StepDelta(0, (), 0, 0, 0)  # step of the engine
        self._ends: deque[float] = deque(maxlen=64)  # when the last choices ended

    @property
    def empty(self) -> bool:
        return not self._live

    @property
    def quiet(self) -> bool:
        """Whether the engine has none of them."""
        return len(self._unsent) == len(self._live)

    @property
    def choices(self) -> int:
        """Choices accepted and not ended; of a search, its beams."""
        return sum(x.open for x in self._live.values())

    @property
    def waiting(self) -> int:
        """Choices that neither ran nor were paused in the last step, known to the engine or not."""
        with self._lock:
            return max(self.choices - self.last.running - self.last.paused, 0)

    def book(self, count: int) -> Places:
        """Places for so many choices, kept until `unbook` whether they are taken or not. Overloaded where there is no
        room for all of them."""
        with self._lock:
            self._check_places(count)
            places = Places(count)
            self._booked.add(places)
        return places

    def unbook(self, places: Places) -> None:
        """What has taken some keeps its own."""
        with self._lock:
            self._booked.discard(places)

    def accept(
        self, prompt: Sequence[int], params: SamplingParams, sink: Sink, terms: Terms, places: Places | None = None
    ) -> Submit:
        """Refuse with InvalidRequest or Overloaded, or record the request: from then on it ends exactly once. `places`:
        booked ones, of which it takes some."""
        check_params(params, self.info.vocab)
        limit = check_prompt(self.info, prompt, params)
        seed = params.seed if params.seed is not None else int.from_bytes(os.urandom(8), "little") >> 1
        with self._lock:
            if places not in self._booked:
                self._check_places(params.width)
            self._last += 1
            request = Submit(self._last, tuple(prompt), params, seed, limit, terms=terms)
            live = Live(request, sink, [[] for _ in range(params.n)], accepted=self._clock(), places=places)
            self._live[request.id] = self._unsent[request.id] = live
        return request

    def _check_places(self, count: int) -> None:
        """Overloaded where so many more do not fit beside what was accepted and booked."""
        booked, room = self._booked, self.info.max_requests + self.info.queue
        taken = sum(p.count for p in booked) + sum(x.open for x in self._live.values() if x.places not in booked)
        if taken + count > room:
            raise Overloaded(
                f"{taken} sequences are running or queued, the limit is {room}; try later",
                self._time_for(taken + count - room),
            )

    def _time_for(self, choices: int) -> float:
        """Seconds until so many more have ended, at the pace of the last ones."""
        if len(self._ends) < 2:
            return 1.0
        each = (self._clock() - self._ends[0]) / len(self._ends)
        return min(max(choices * each, 1.0), _LONGEST_RETRY_S)

    def retry_after(self) -> float:
        """Seconds until all that is queued now has begun, about."""
        with self._lock:
            return self._time_for(max(self.choices - self.info.max_requests, 0) + 1)

    def take(self, step: StepDelta) -> None:
        """Keep what a step says of the engine, and deliver its deltas."""
        self.last = step
        self.journal.add(step.notes)
        for id, read, known in step.reading:
            if (live := self._live.get(id)) is not None:
                live.read = read, known
        for delta in step.deltas:
            self.deliver(delta)

    def progress(self, id: int) -> tuple[int, int]:
        """Tokens of a prompt that takes some steps to read: how many have been, and all of them; else (0, 0)."""
        live = self._live.get(id)
        return live.read if live is not None else (0, 0)

    def why(self, id: int) -> list[str]:
        """What was decided for a request; of one of which nothing was, where it waits."""
        told, live = self.journal.why(id), self._live.get(id)
        if told or live is None or any(live.emitted) or live.read[1]:
            return told
        where = journal.WAITS_FOR_AN_ENGINE if id in self._unsent else journal.WAITS_ITS_TURN
        return [Note(id, 0, where, (self.waiting,)).text]

    def deliver(self, delta: Delta) -> None:
        """Record a delta and hand it on; deltas of ended choices are dropped (late rows, crossing cancels)."""
        with self._lock:
            live = self._live.get(delta.id)
            if live is None or delta.choice in live.done:
                return
            for token in delta.tokens:
                live.emitted[delta.choice].append(token.id)
                live.deaths = 0
            live.prompt_given |= delta.prompt is not None
            if delta.finish is not None:
                live.done.add(delta.choice)
                self._ends.append(self._clock())
                if len(live.done) == live.request.params.n:
                    del self._live[delta.id]
                    self._unsent.pop(delta.id, None)
        live.sink(delta)

    def cancel(self, id: int, reason: str = CANCELLED) -> None:
        """Note that a request is to be cancelled, once; ended and unknown ones are left alone."""
        with self._lock:
            live = self._live.get(id)
            if live is not None and not live.cancelled:
                live.cancelled = reason
                self._order(Cancel(id, reason))

    def pause(self, id: int, paused: bool = True) -> None:
        """Note that a request is to be paused, or to go on; replays keep to it."""
        with self._lock:
            live = self._live.get(id)
            if live is not None and live.paused != paused:
                live.paused = paused
                self._order(Pause(id) if paused else Resume(id))

    def _order(self, order: Cancel | Pause | Resume) -> None:
        if order.id not in self._unsent:  # else it goes along with the request
            self._orders.append(order)

    def due(self) -> list[ToEngine]:
        """What the engine must be told now, oldest first. Each message is given once per engine.

        Of the requests with which engines died, one at a time: the next one when it has had a token, or ended.
        """
        with self._lock:
            if not self._unsent and not self._orders:
                return []
            messages: list[ToEngine] = [*self._orders]
            self._orders.clear()
            trial = any(x.deaths >= _SUSPECT for id, x in self._live.items() if id not in self._unsent)
            for id, x in list(self._unsent.items()):
                suspect = x.deaths >= _SUSPECT and not x.cancelled  # a cancelled one ends without a step
                if suspect and (trial or x.paused):
                    continue
                trial |= suspect
                del self._unsent[id]
                messages.append(x.replay(self._clock()))
                if x.paused:
                    messages.append(Pause(id))
                if x.cancelled:
                    messages.append(Cancel(id, x.cancelled))
        return messages

    def engine_died(self) -> bool:
        """Everything is due again. True if the death is laid to one request, which ends as failed."""
        with self._lock:
            self._count_failure()
            for id, x in self._live.items():
                if id not in self._unsent:
                    x.deaths += 1
                    left = [(c, len(made)) for c, made in enumerate(x.emitted) if c not in x.done]
                    self.journal.add(Note(id, c, journal.REPLAYED, (made,)) for c, made in left)
            guilty = [x for x in self._live.values() if x.deaths >= _GUILTY]
            self._unsent = dict(self._live)
            self._orders.clear()
        for x in guilty:
            self._fail(x, FAILED)
        return bool(guilty)

    def _count_failure(self) -> None:
        """Of the step that an engine was at when it was lost, if it was at any."""
        busy = [x for id, x in self._live.items() if id not in self._unsent and not x.paused]
        silent = sum(x.open for x in busy if x.deaths or not any(x.emitted))  # a new engine reads all again
        if silent > self.last.waiting:  # they cannot all have waited
            self.failures.reading += 1
        elif busy:
            self.failures.answering += 1

    def fail_all(self, reason: str) -> None:
        """End everything: the engine is gone for good."""
        with self._lock:
            live = list(self._live.values())
        for x in live:
            self._fail(x, reason)

    def _fail(self, live: Live, reason: str) -> None:
        id = live.request.id
        for choice, made in enumerate(live.emitted):
            if choice not in live.done:
                self.journal.add([Note(id, choice, journal.ENDS, (reason, len(made)))])
            self.deliver(Delta(id, choice, (), "", reason))
