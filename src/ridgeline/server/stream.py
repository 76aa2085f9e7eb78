"""Stream: the deltas of one HTTP request, from the hub to whoever writes its answer.

Leaving it cancels whatever has not ended, and a reader who falls behind pauses it. Must not know any API's format.
"""

from __future__ import annotations

import asyncio
import threading
import time
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ridgeline.engine.client import check_grammar
from ridgeline.engine.ledger import Places
from ridgeline.engine.records import EXPIRED, NO_TERMS, UNDELIVERED, Terms
from ridgeline.errors import DeadlinePassed, EngineFailed, RidgelineError
from ridgeline.guidance.compiler import BUDGET_S, NotCompiled
from ridgeline.server.jobs import BROKEN, Event, Job, size_of
from ridgeline.server.record import Record

if TYPE_CHECKING:
    from ridgeline.server.hub import Hub

T = TypeVar("T")
Say = Callable[[list[Event]], Coroutine[Any, Any, None]]


class Stream:
    """The deltas of one HTTP request's jobs, in order. `submit` may run in a thread; the rest is the event loop's."""

    def __init__(self, hub: Hub, record: Record) -> None:
        self._hub, self.record, self.id = hub, record, record.id
        self.ids: list[int] = []
        self._left = 0  # choices that have not ended
        self._limited = self._begun = False  # whether its time is limited; whether it has had a token
        self._closed = self._broke = False  # whether a choice ended as no answer does
        self._places: Places | None = None
        self._patience: asyncio.TimerHandle | None = None  # with a reader that is behind: the requests are paused
        self._lock = threading.Lock()  # for all these: a submit in a thread may cross a pause or the end of the request
        self._events: list[Event] = []
        self._waiting = self._taken = 0  # sizes of _events, and of those that the reader has and has not come back from
        self._failure: Exception | None = None
        self._sleeper: asyncio.Future[None] | None = None  # of who waits for events
        self._say: Say | None = None
        self._rest: Awaitable[None] | None = None  # of what was begun to say, and had to wait
        self._spoke, self._told = time.perf_counter(), (0, 0)  # when something last went out; the progress told

    async def __aenter__(self) -> Stream:
        self._hub.add(self)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._hub.discard(self)
        self._say = self._rest = None  # they know this stream: it goes at once, not when cycles are looked for
        self._close()

    def _close(self) -> None:
        with self._lock:
            self._closed = True
            self._stop_waiting()
            ids = list(self.ids)
            self._give_back()
        if self._left > 0:
            self._hub.cancel(ids)

    async def run(self, work: Callable[[], T]) -> T:
        """`work` in one of the hub's threads; once more when the grammar is compiled that it lacks: no thread waits."""
        late = time.perf_counter() + BUDGET_S
        while True:
            try:
                return await self._hub.run(work)
            except NotCompiled as missing:
                if self.ids or (left := late - time.perf_counter()) <= 0:
                    raise
                with suppress(Exception):  # `work` is told, by `check`
                    await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(missing.future)), left)

    def check(self, jobs: Sequence[Job]) -> list[str]:
        """What to warn of in jobs with grammars; InvalidRequest, or NotCompiled, which `run` takes."""
        client = self._hub.client
        return [said for j in jobs for said in check_grammar(client.compiler, client.info, j.prompt, j.params, 0.0)]

    def submit(self, jobs: Sequence[Job], terms: Terms = NO_TERMS, more: bool = False) -> None:
        """Submit all jobs, or raise the error that refuses one: then none has a place. `more`: others follow, no more
        at once than these, which keep the places of these."""
        self._places = self._places or (self._hub.book(jobs) if more or len(jobs) > 1 else None)
        try:
            self._submit(jobs, terms)
        finally:
            if not more or self._closed:
                self._give_back()

    def _submit(self, jobs: Sequence[Job], terms: Terms) -> None:
        self._limited = terms.wait_s > 0 or terms.total_s > 0
        self._left = sum(job.params.n for job in jobs)
        self.record.submitted = self.record.submitted or time.perf_counter()
        for number, job in enumerate(jobs):
            if self._closed:
                return
            try:
                id = self._hub.submit(self, number, job, terms, self._places)
            except RidgelineError:
                if not self.ids:
                    self.record.submitted = 0.0  # nothing of it reached the engine
                raise
            self._accepted(job)
            with self._lock:
                self.ids.append(id)
                closed = self._closed
                if self._patience is not None:
                    self._hub.client.pause(id)
            if closed:
                self._hub.cancel([id])

    def _give_back(self) -> None:
        """Let others have the places that were booked and are not taken."""
        places, self._places = self._places, None
        if places is not None:
            self._hub.client.ledger.unbook(places)

    def _accepted(self, job: Job) -> None:
        """The engine has taken a job: its prompt counts, and is paid for, whoever waits for the answer."""
        record, size = self.record, len(job.prompt)
        record.prompt += size
        record.choices += job.params.n
        record.most = max(record.most, job.params.max_tokens or 0)
        self._hub.post(partial(record.spend, size))

    async def batches(self, say: Say | None = None) -> AsyncIterator[list[Event]]:
        """Events as they come, several at a time, until every choice has ended; an empty list means still waiting.

        What comes while the reader sleeps is given to `say` instead, which saves waking it. Raises
        EngineFailed, DeadlinePassed or Undelivered, after what came before, where a choice has no proper end.
        """
        self._say = say
        while self._left > 0 or self._events or self._rest is not None:
            batch = await self._next()
            bad = [i for i, e in enumerate(batch) if e.delta.finish in BROKEN][:1] if self._broke else []
            if bad != [0]:
                yield batch[: bad[0]] if bad else batch
            if bad:
                raise self._broken(batch[bad[0]].delta.finish or "")

    async def begun(self) -> None:
        """Wait for a sign of the answer, if its time is limited. DeadlinePassed where that was up before."""
        if self._limited:
            late = time.perf_counter() + self._hub.keep_alive
            while not self._events and self._failure is None and time.perf_counter() < late:
                await self._wait()
            if self._events and self._events[0].delta.finish == EXPIRED:
                raise self._broken(EXPIRED)

    def _broken(self, finish: str) -> RidgelineError:
        if finish == EXPIRED and not self._begun:
            return DeadlinePassed(
                "the request's time was up before its first token", self._hub.client.ledger.retry_after()
            )
        return BROKEN[finish]()

    async def _wait(self) -> None:
        """Until there are events, a failure, or a sign of life is due."""
        if self._events or self._failure is not None:
            return
        self._sleeper = asyncio.get_running_loop().create_future()
        try:
            await self._sleeper
        finally:
            self._sleeper = None

    def look(self, now: float) -> None:
        """Wake who waits, if a sign of life is due."""
        if self._sleeper is not None and self._due(now):
            self._rouse()

    def _due(self, now: float) -> bool:
        """Whether more of the prompt has been read than was told, or nothing was for long."""
        return now - self._spoke >= self._hub.keep_alive or (not self._begun and self._progress() != self._told)

    def _rouse(self) -> None:
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    def _progress(self) -> tuple[int, int]:
        return self._hub.client.ledger.progress(self.ids[-1]) if self.ids else (0, 0)

    def spoke(self) -> None:
        """Something went out."""
        self._spoke = time.perf_counter()

    def sign(self) -> tuple[int, int] | None:
        """For a stream that says nothing just now: tokens of its prompt that were read, and all of them, (0, 0) where
        that is not known; None while no sign of life is due."""
        if not self._due(time.perf_counter()):
            return None
        self.spoke()
        self._told = (0, 0) if self._begun else self._progress()
        return self._told

    async def _next(self) -> list[Event]:
        self._taken = 0
        if self._patience is not None and self._waiting <= self._hub.max_undelivered // 2:
            self._resume()
        if self._left > 0:
            await self._wait()
        if self._rest is not None:
            rest, self._rest = self._rest, None
            await rest
        if not self._events and self._failure is not None:
            raise self._failure
        return self._take()

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        self._taken, self._waiting = self._waiting, 0
        return events

    def push(self, event: Event, now: float) -> None:
        """A delta arrived, to be told with the next `flush`. Where too many wait for their reader the requests are
        paused, and given up in the end."""
        if self._failure is not None or self._closed:
            return
        delta, record = event.delta, self.record
        if delta.tokens:
            self._begun = True
            if record.tokens(len(delta.tokens), now):
                self._hub.metrics.gap(record.gap)
        if delta.choice == 0:  # the others share its prompt
            record.cached += delta.cached
        if delta.ran:
            record.ran(delta.ran, now)
        if delta.finish is not None:
            self._left -= 1
            record.finish = delta.finish
            self._broke |= delta.finish in BROKEN
        self._events.append(event)
        self._waiting += size_of(delta)
        if self._left > 0 and self._patience is None and self._taken + self._waiting > self._hub.max_undelivered:
            self._pause()

    def flush(self) -> None:
        """Say what has arrived, if its reader only sleeps; all else is for it to do."""
        asleep = self._sleeper is not None and not self._sleeper.done()
        usual = self._left > 0 and not self._broke and self._patience is None and self._failure is None
        if self._say is None or not (asleep and usual and self._events):
            return self._rouse()
        saying = self._say(self._take())
        try:
            waits = saying.send(None)
        except StopIteration:  # it is said
            self._taken = 0
            return
        except Exception as fault:
            self._failure = fault
        else:
            self._rest = _rest(saying, waits)
        self._rouse()

    def _pause(self) -> None:
        with self._lock:
            self._patience = self._hub.later(self._hub.max_pause, self._give_up)
            for id in self.ids:
                self._hub.client.pause(id)

    def _resume(self) -> None:
        with self._lock:
            self._stop_waiting()
            for id in self.ids:
                self._hub.client.resume(id)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        with self._lock:
            ids = list(self.ids)
        self._hub.cancel(ids, UNDELIVERED)

    def fail(self, failure: EngineFailed) -> None:
        """No more deltas will come."""
        self._failure = failure
        self._rouse()


@types.coroutine
def _rest(begun: Coroutine[Any, Any, None], waits: Any) -> Generator[Any, Any, None]:
    """What is left of a coroutine that was begun outside of any task, and came to where it waits for a future."""
    try:
        yield waits
        yield from begun  # type: ignore[misc]
    finally:
        begun.close()
