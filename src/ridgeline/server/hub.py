"""Hub: the bridge between asyncio and the engine client.

Owns the pump thread, the threads that parse and submit, and the streams of deltas to HTTP requests. Deltas cross to
the event loop once per pump, not once per token. A Stream belongs to one HTTP request; leaving it cancels whatever
has not ended, and a reader who falls behind pauses it. Must not know any API's format.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from ridgeline.config import ServerConfig
from ridgeline.engine.client import EngineClient, check_grammar
from ridgeline.engine.params import SamplingParams
from ridgeline.engine.records import (
    CANCELLED,
    EXPIRED,
    FAILED,
    NO_MEMORY,
    NO_TERMS,
    UNDELIVERED,
    UNGUIDED,
    Delta,
    Terms,
)
from ridgeline.errors import DeadlinePassed, EngineFailed, RidgelineError, Undelivered
from ridgeline.server import sse
from ridgeline.server.errors import Unhealthy
from ridgeline.server.metrics import Metrics
from ridgeline.server.record import Record

PUMP_S = 0.2  # longest wait of the pump thread, and so of a shutdown
KEEP_ALIVE_S = 15.0
PROGRESS_S = 1.0  # between signs of a prompt that is being read
THREADS = 4
_REMEMBERED = 4096  # HTTP requests
_ENDING = "the server is shutting down"
_RETRY_S = 1.0  # by then another one may serve at this address
_BROKEN: dict[str, Callable[[], RidgelineError]] = {  # what an end means that is none of an answer
    CANCELLED: lambda: EngineFailed("the engine was shut down before the answer was complete"),
    FAILED: lambda: EngineFailed("the engine failed before the answer was complete"),
    NO_MEMORY: lambda: EngineFailed("the system had no memory left to complete the answer"),
    UNGUIDED: lambda: EngineFailed("what the grammar allows next could not be found within its bounds"),
    EXPIRED: lambda: DeadlinePassed("the request's time was up before its answer was complete"),
    UNDELIVERED: lambda: Undelivered("the answer was read too slowly: what waited was too much for too long"),
}

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A prompt to continue. An HTTP request may hold several; its events name them by position."""

    prompt: Sequence[int]
    params: SamplingParams


@dataclass(frozen=True)
class Event:
    """A delta of the request's job number `job`."""

    job: int
    delta: Delta


class Hub:
    """Pumps `client` from `start` to `stop`. One per app; all but `_pump` and submitting runs in the event loop.

    Of an answer about `max_undelivered` bytes may wait for their reader, for `max_pause` seconds.
    """

    def __init__(
        self,
        client: EngineClient,
        max_undelivered: int = ServerConfig.max_undelivered,
        max_pause: float = ServerConfig.max_pause,
        metrics: Metrics | None = None,
    ) -> None:
        self.client, self.max_undelivered, self.max_pause = client, max_undelivered, max_pause
        self.metrics = metrics or Metrics(client.info)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="ridgeline-parse")
        self._thread = threading.Thread(target=self._pump, name="ridgeline-pump", daemon=True)
        self._stopping = threading.Event()
        self._pumped: list[tuple[Stream, Event]] = []
        self._streams: set[Stream] = set()
        self._asked: OrderedDict[tuple[str, str], list[int]] = OrderedDict()  # by key and name: clients choose names
        self._loop: asyncio.AbstractEventLoop | None = None
        self._problem: str | None = None
        self._then: Callable[[], object] | None = None  # when all streams have ended: no new ones are let in

    def start(self) -> None:
        """Begin pumping into the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End the threads. Waits for a pump that is under way, which may be reloading an engine."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._threads.shutdown()

    def drain(self, seconds: float, then: Callable[[], object]) -> None:
        """Let running answers go on so long, then end each with an error; new ones are refused. Calls `then` as soon
        as there are none. For signal handlers."""
        if self._loop is None:
            then()
        else:
            self._loop.call_soon_threadsafe(self._drain, seconds, then)

    def _drain(self, seconds: float, then: Callable[[], object]) -> None:
        self._then = then
        if self._streams:
            self.later(seconds, self._cut)
        else:
            then()

    def _cut(self) -> None:
        self._fail_all(_ENDING)
        if self._then is not None:
            self._then()

    @property
    def problem(self) -> str | None:
        """Why requests are not served now, or None: some wait until they are."""
        return self._problem or (_ENDING if self._then is not None else self.client.unhealthy())

    def stream(self, record: Record | None = None) -> Stream:
        """A stream for one HTTP request, to be used in `async with`. Unhealthy where the server is shutting down."""
        if self._then is not None:
            raise Unhealthy(f"{_ENDING}; ask again", _RETRY_S)
        return Stream(self, record or Record())

    def asked(self, id: str) -> list[int]:
        """The client's ids of what HTTP requests of this name, which may have a prefix, submitted, of the last
        thousands."""
        names = (id, id.partition("-")[2])
        return [number for (_, name), ids in self._asked.items() if name in names for number in ids]

    async def run(self, work: Callable[[], T]) -> T:
        """`work` in a thread: parsing, templates and tokenising may take long enough to stall other streams."""
        assert self._loop is not None
        return await self._loop.run_in_executor(self._threads, work)

    def submit(self, stream: Stream, number: int, job: Job, terms: Terms) -> int:
        """Thread-safe. The client's id of the request; typed errors where it refuses."""
        if problem := self._problem or self.client.gone():
            raise Unhealthy(problem)
        return self.client.submit(job.prompt, job.params, partial(self._collect, stream, number), terms)

    def cancel(self, ids: Sequence[int], reason: str = CANCELLED) -> None:
        """Cancel requests of the client, from any thread."""
        for id in ids:
            self.client.cancel(id, reason)

    def later(self, seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        assert self._loop is not None
        return self._loop.call_later(seconds, call)

    def add(self, stream: Stream) -> None:
        self._streams.add(stream)
        self._asked[stream.record.name, stream.id] = stream.ids
        if len(self._asked) > _REMEMBERED:
            self._asked.popitem(last=False)

    def discard(self, stream: Stream) -> None:
        self._streams.discard(stream)
        if self._then is not None and not self._streams:
            self._then()

    def _collect(self, stream: Stream, number: int, delta: Delta) -> None:
        self._pumped.append((stream, Event(number, delta)))

    def _pump(self) -> None:
        try:
            while not self._stopping.is_set():
                self.client.pump(PUMP_S)
                if self._pumped:
                    batch, self._pumped = self._pumped, []
                    self._post(partial(self._spread, batch))
        except Exception as fault:
            log.exception("the pump thread failed")
            self._problem = f"the server lost its engine: {type(fault).__name__}"
            self._post(partial(self._fail_all, self._problem))

    def _post(self, call: Callable[[], None]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop is closed: a forced shutdown left nobody to tell
            self._stopping.set()

    def _spread(self, batch: list[tuple[Stream, Event]]) -> None:
        now = time.perf_counter()
        self.metrics.stepped(self.client.last, now)
        for stream, event in batch:
            stream.push(event, now)

    def _fail_all(self, why: str) -> None:
        for stream in list(self._streams):
            stream.fail(EngineFailed(why))


class Stream:
    """The deltas of one HTTP request's jobs, in order. `submit` may run in a thread; the rest is the event loop's."""

    def __init__(self, hub: Hub, record: Record) -> None:
        self._hub, self.record, self.id = hub, record, record.id
        self.ids: list[int] = []
        self._left = 0  # choices that have not ended
        self._limited = self._begun = False  # whether its time is limited; whether it has had a token
        self._closed = False
        self._patience: asyncio.TimerHandle | None = None  # with a reader that is behind: the requests are paused
        self._lock = threading.Lock()  # for all these: a submit in a thread may cross a pause or the end of the request
        self._events: list[Event] = []
        self._waiting = self._taken = 0  # sizes of _events, and of those that the reader has and has not come back from
        self._failure: EngineFailed | None = None
        self._wake = asyncio.Event()

    async def __aenter__(self) -> Stream:
        self._hub.add(self)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._hub.discard(self)
        self._close()

    def _close(self) -> None:
        with self._lock:
            self._closed = True
            self._stop_waiting()
            ids = list(self.ids)
        if self._left > 0:
            self._hub.cancel(ids)

    async def run(self, work: Callable[[], T]) -> T:
        """`work` in one of the hub's threads."""
        return await self._hub.run(work)

    def check(self, jobs: Sequence[Job]) -> list[str]:
        """What to warn of in jobs with grammars; InvalidRequest for one that cannot be followed. It may take long."""
        client = self._hub.client
        return [said for j in jobs for said in check_grammar(client.compiler, client.info, j.prompt, j.params)]

    def submit(self, jobs: Sequence[Job], terms: Terms = NO_TERMS) -> None:
        """Submit all jobs. If one is refused its error is raised, and those before it are cancelled on exit."""
        self._limited = terms.wait_s > 0 or terms.total_s > 0
        self._left = sum(job.params.n for job in jobs)
        self._tell(jobs)
        for number, job in enumerate(jobs):
            if self._closed:
                return
            try:
                id = self._hub.submit(self, number, job, terms)
            except RidgelineError:
                self.record.submitted *= number > 0  # else nothing of it reached the engine
                raise
            with self._lock:
                self.ids.append(id)
                closed = self._closed
                if self._patience is not None:
                    self._hub.client.pause(id)
            if closed:
                self._hub.cancel([id])

    def _tell(self, jobs: Sequence[Job]) -> None:
        record = self.record
        record.submitted, record.choices = time.perf_counter(), self._left
        record.prompt = sum(len(job.prompt) for job in jobs)
        record.most = max((job.params.max_tokens or 0 for job in jobs), default=0)

    async def batches(self) -> AsyncIterator[list[Event]]:
        """Events as they come, several at a time, until every choice has ended; an empty list means still waiting.

        Raises EngineFailed, DeadlinePassed or Undelivered, after what came before, where a choice has no proper end.
        """
        while self._left > 0 or self._events:
            batch = await self._next()
            bad = next((i for i, e in enumerate(batch) if e.delta.finish in _BROKEN), None)
            if bad is None:
                yield batch
                continue
            yield batch[:bad]
            raise self._broken(batch[bad].delta.finish or "")

    async def begun(self) -> None:
        """Wait for a sign of the answer, if its time is limited. DeadlinePassed where that was up before."""
        if self._limited:
            await self._wait(KEEP_ALIVE_S)
            if self._events and self._events[0].delta.finish == EXPIRED:
                raise self._broken(EXPIRED)

    def _broken(self, finish: str) -> RidgelineError:
        if finish == EXPIRED and not self._begun:
            return DeadlinePassed("the request's time was up before its first token", self._hub.client.retry_after())
        return _BROKEN[finish]()

    async def _wait(self, seconds: float) -> None:
        """Until there are events or a failure, but not longer than that."""
        if not self._events and self._failure is None:
            self._wake.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), seconds)

    async def _sign(self) -> None:
        """Until there is something to say: of a prompt that is being read, or that the connection is alive."""
        if self._begun or self._events:
            return await self._wait(KEEP_ALIVE_S)
        end, told = time.monotonic() + KEEP_ALIVE_S, self._progress()
        while not self._begun and not self._events and self._failure is None and time.monotonic() < end:
            await self._wait(min(PROGRESS_S, KEEP_ALIVE_S))
            if self._progress() != told:
                return
        await self._wait(max(end - time.monotonic(), 0.0))

    def _progress(self) -> tuple[int, int]:
        return self._hub.client.progress(self.ids[-1]) if self.ids else (0, 0)

    def sign_of_life(self) -> bytes:
        """A comment for a stream that has nothing else to say."""
        done, total = (0, 0) if self._begun else self._progress()
        return sse.prefill(done, total) if total else sse.KEEP_ALIVE

    async def _next(self) -> list[Event]:
        self._taken = 0
        if self._patience is not None and self._waiting <= self._hub.max_undelivered // 2:
            self._resume()
        await self._sign()
        if not self._events and self._failure is not None:
            raise self._failure
        events, self._events = self._events, []
        self._taken, self._waiting = self._waiting, 0
        return events

    def push(self, event: Event, now: float) -> None:
        """A delta arrived. Where too many wait for their reader the requests are paused, and given up in the end."""
        if self._failure is not None or self._closed:
            return
        self._count(event.delta, now)
        self._events.append(event)
        self._begun |= bool(event.delta.tokens)
        self._waiting += _size(event.delta)
        self._left -= event.delta.finish is not None
        self._wake.set()
        if self._left > 0 and self._patience is None and self._taken + self._waiting > self._hub.max_undelivered:
            self._pause()

    def _count(self, delta: Delta, now: float) -> None:
        record = self.record
        if delta.tokens and record.tokens(len(delta.tokens), now):
            self._hub.metrics.gap(record.gap)
        if delta.choice == 0:  # the others share its prompt
            record.cached += delta.cached
        if delta.finish is not None:
            record.finish = delta.finish

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
        self._wake.set()


def _size(delta: Delta) -> int:
    """About the bytes of a delta: its text and tokens. A prompt's logprobs come once, so they need no bound."""
    return len(delta.text) + sum(16 * (1 + len(t.top)) for t in delta.tokens)
