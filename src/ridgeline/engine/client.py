"""EngineClient: the one seam between whoever wants tokens and the engine, in this process or a child.

The client's side keeps the record of every live request (prompt, seed, emitted tokens), accepts or refuses, hands
deltas to sinks, and so can replay everything after an engine process died.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from ridgeline.engine import journal
from ridgeline.engine.engine import Engine
from ridgeline.engine.orders import handle
from ridgeline.engine.params import SamplingParams, check_params
from ridgeline.engine.records import (
    CANCELLED,
    FAILED,
    NO_TERMS,
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
from ridgeline.errors import InvalidRequest, Overloaded
from ridgeline.guidance.compiler import BUDGET_S, Compiler

Sink = Callable[[Delta], None]

_LONGEST_RETRY_S = 60.0
_SUSPECT, _GUILTY = 2, 3  # engines that died with a request before it is sent without others like it; before it fails


class EngineClient(Protocol):
    """`submit` refuses with a typed error or returns an id; then `sink` gets deltas until each choice has one finish.

    `pump` moves things on: it runs a step, or waits up to `timeout` seconds for one from the child, and calls sinks
    in the calling thread. The others may be called from any thread. A request that is paused gets nothing but what
    was on its way until it is resumed, or cancelled for `reason`.
    """

    info: EngineInfo
    restarts: int  # of the engine
    compiler: Compiler | None  # of grammars; without one they are refused

    @property
    def last(self) -> StepDelta:
        """The last step of the engine."""

    @property
    def waiting(self) -> int:
        """Choices that were accepted and neither run nor are paused, known to the engine or not."""

    def why(self, id: int) -> list[str]:
        """What was decided for a request and why, in words; as far back as is remembered."""

    def progress(self, id: int) -> tuple[int, int]:
        """Tokens of a prompt that was not read in one step: how many have been, and all of them; else (0, 0)."""

    def retry_after(self) -> float:
        """Seconds until what is queued now has had its turn, at the pace of the last ends."""

    def submit(self, prompt: Sequence[int], params: SamplingParams, sink: Sink, terms: Terms = NO_TERMS) -> int: ...

    def cancel(self, id: int, reason: str = CANCELLED) -> None: ...

    def pause(self, id: int) -> None: ...

    def resume(self, id: int) -> None: ...

    def pump(self, timeout: float) -> None: ...

    @property
    def idle(self) -> bool: ...

    def gone(self) -> str | None:
        """Why requests can never be served again, or None."""

    def unhealthy(self) -> str | None:
        """Why they are not served now, or None: what is accepted meanwhile waits."""

    def close(self) -> None: ...


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
    """All live requests of a client. Thread-safe; the only place that accepts, refuses and ends."""

    def __init__(self, info: EngineInfo, clock: Callable[[], float] = time.monotonic) -> None:
        self.info, self._clock = info, clock
        self._live: dict[int, Live] = {}
        self._unsent: dict[int, Live] = {}  # those of _live that the engine does not know
        self._orders: list[Cancel | Pause | Resume] = []  # for requests that it knows
        self._lock = threading.Lock()
        self._last = 0
        self.journal = journal.Journal()
        self.last = StepDelta(0, (), 0, 0, 0)
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
        return sum(x.request.params.width - len(x.done) for x in self._live.values())

    @property
    def waiting(self) -> int:
        """Choices that neither ran nor were paused in the last step."""
        with self._lock:
            return max(self.choices - self.last.running - self.last.paused, 0)

    def accept(self, prompt: Sequence[int], params: SamplingParams, sink: Sink, terms: Terms) -> Submit:
        """Refuse with InvalidRequest or Overloaded, or record the request: from then on it ends exactly once."""
        check_params(params, self.info.vocab)
        limit = check_prompt(self.info, prompt, params)
        seed = params.seed if params.seed is not None else int.from_bytes(os.urandom(8), "little") >> 1
        with self._lock:
            room = self.info.max_requests + self.info.queue
            if self.choices + params.width > room:
                over = self.choices + params.width - room
                raise Overloaded(
                    f"{self.choices} sequences are running or queued, the limit is {room}; try later",
                    self._time_for(over),
                )
            self._last += 1
            request = Submit(self._last, tuple(prompt), params, seed, limit, terms=terms)
            live = Live(request, sink, [[] for _ in range(params.n)], accepted=self._clock())
            self._live[request.id] = self._unsent[request.id] = live
        return request

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


class LocalClient:
    """The engine in the calling thread: `pump` runs one step. For offline use and tests."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.info, self.compiler, self.restarts = engine, engine.info, engine.compiler, 0
        self._ledger = Ledger(engine.info, engine.clock)
        self._pumping = threading.Lock()  # callers in several threads take turns

    @property
    def last(self) -> StepDelta:
        return self._ledger.last

    @property
    def waiting(self) -> int:
        return self._ledger.waiting

    def why(self, id: int) -> list[str]:
        return self._ledger.why(id)

    def progress(self, id: int) -> tuple[int, int]:
        return self._ledger.progress(id)

    def retry_after(self) -> float:
        return self._ledger.retry_after()

    def submit(self, prompt: Sequence[int], params: SamplingParams, sink: Sink, terms: Terms = NO_TERMS) -> int:
        check_grammar(self.compiler, self.info, prompt, params)
        return self._ledger.accept(prompt, params, sink, terms).id

    def cancel(self, id: int, reason: str = CANCELLED) -> None:
        self._ledger.cancel(id, reason)

    def pause(self, id: int) -> None:
        self._ledger.pause(id)

    def resume(self, id: int) -> None:
        self._ledger.pause(id, False)

    def pump(self, timeout: float = 0.0) -> None:
        with self._pumping:
            for message in self._ledger.due():
                handle(self.engine, message)
            if not self.engine.idle:
                self._ledger.take(self.engine.step())

    @property
    def idle(self) -> bool:
        return self._ledger.empty and self.engine.idle

    def gone(self) -> str | None:
        return None

    def unhealthy(self) -> str | None:
        return None

    def close(self) -> None:
        self._ledger.fail_all(CANCELLED)
        if self.engine.kept is not None:
            with self._pumping:
                self.engine.close()


def check_grammar(
    compiler: Compiler | None, info: EngineInfo, prompt: Sequence[int], params: SamplingParams, wait_s: float = BUDGET_S
) -> list[str]:
    """InvalidRequest where a request has a grammar that cannot be followed in its tokens, NotCompiled where that is not
    known after `wait_s` seconds; else what to warn of."""
    if params.grammar is None:
        return []
    check_params(params, info.vocab)
    limit = check_prompt(info, prompt, params)
    if compiler is None:
        raise InvalidRequest("grammars are not available here (--disable-grammar-support)", "grammar")
    return compiler.check(params.grammar, limit, wait_s)
