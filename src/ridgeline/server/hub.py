"""Hub: the bridge between asyncio and the engine client.

Owns the pump thread, the threads that parse and submit, and the streams of deltas to HTTP requests. Deltas cross to
the event loop once per pump, not once per token. A Stream belongs to one HTTP request; leaving it cancels whatever
has not ended, and a reader who falls behind pauses it. Must not know any API's format.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

from ridgeline.config import ServerConfig
from ridgeline.engine.client import EngineClient, check_grammar
from ridgeline.engine.records import CANCELLED, EXPIRED, NO_TERMS, UNDELIVERED, Delta, Terms
from ridgeline.errors import DeadlinePassed, EngineFailed, RidgelineError
from ridgeline.guidance.compiler import BUDGET_S, NotCompiled
from ridgeline.server import sse
from ridgeline.server.errors import Unhealthy
from ridgeline.server.jobs import BROKEN, Event, Job, size_of
from ridgeline.server.metrics import Metrics
from ridgeline.server.record import Record

PUMP_S = 0.2  # longest wait of the pump thread, and so of a shutdown
KEEP_ALIVE_S = 15.0
PROGRESS_S = 1.0  # between signs of a prompt that is being read
THREADS = 4
_REMEMBERED = 4096  # HTTP requests
_ENDING = "the server is shutting down"
_RETRY_S = 1.0  # by then another one may serve at this address
T = TypeVar("T")
log = logging.getLogger(__name__)


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
        self._look()

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

    def _look(self) -> None:
        """Now and then: one timer for all streams, where one for each wait of each would cost more than its token."""
        now = time.perf_counter()
        for stream in self._streams:
            stream.look(now)
        if not self._stopping.is_set():
            self.later(min(PROGRESS_S, KEEP_ALIVE_S), self._look)

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
        self.metrics.stepped(self.client.last)
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
        self._closed = self._broke = False  # whether a choice ended as no answer does
        self._patience: asyncio.TimerHandle | None = None  # with a reader that is behind: the requests are paused
        self._lock = threading.Lock()  # for all these: a submit in a thread may cross a pause or the end of the request
        self._events: list[Event] = []
        self._waiting = self._taken = 0  # sizes of _events, and of those that the reader has and has not come back from
        self._failure: EngineFailed | None = None
        self._sleeper: asyncio.Future[None] | None = None  # of who waits for events
        self._signed, self._told = time.perf_counter(), (0, 0)  # when there last was a sign of life; the progress told

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
        """`work` in one of the hub's threads; once more when the grammar is compiled that it needs: no thread waits."""
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
        """What to warn of in jobs with grammars; InvalidRequest for one that cannot be followed, NotCompiled, which
        `run` takes, for one of which that is not known yet."""
        client = self._hub.client
        return [said for j in jobs for said in check_grammar(client.compiler, client.info, j.prompt, j.params, 0.0)]

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
            bad = [i for i, e in enumerate(batch) if e.delta.finish in BROKEN] if self._broke else []
            yield batch[: bad[0]] if bad else batch
            if bad:
                raise self._broken(batch[bad[0]].delta.finish or "")

    async def begun(self) -> None:
        """Wait for a sign of the answer, if its time is limited. DeadlinePassed where that was up before."""
        if self._limited:
            late = time.perf_counter() + KEEP_ALIVE_S
            while not self._events and self._failure is None and time.perf_counter() < late:
                await self._wait()
            if self._events and self._events[0].delta.finish == EXPIRED:
                raise self._broken(EXPIRED)

    def _broken(self, finish: str) -> RidgelineError:
        if finish == EXPIRED and not self._begun:
            return DeadlinePassed("the request's time was up before its first token", self._hub.client.retry_after())
        return BROKEN[finish]()

    async def _wait(self) -> None:
        """Until there are events, a failure, or so long nothing to say that there should be a sign of life."""
        if self._events or self._failure is not None:
            return
        self._sleeper = asyncio.get_running_loop().create_future()
        try:
            await self._sleeper
        finally:
            self._sleeper = None

    def look(self, now: float) -> None:
        """Wake who waits for its first token and has not been told how far its prompt is read, or has waited long."""
        if self._sleeper is None:
            return
        told = self._told if self._begun else self._progress()
        if told != self._told or now - max(self._signed, self.record.last) >= KEEP_ALIVE_S:
            self._told, self._signed = told, now
            self._rouse()

    def _rouse(self) -> None:
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

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
        await self._wait()
        if not self._events and self._failure is not None:
            raise self._failure
        events, self._events = self._events, []
        self._taken, self._waiting = self._waiting, 0
        return events

    def push(self, event: Event, now: float) -> None:
        """A delta arrived. Where too many wait for their reader the requests are paused, and given up in the end."""
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
        self._rouse()
        if self._left > 0 and self._patience is None and self._taken + self._waiting > self._hub.max_undelivered:
            self._pause()

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
