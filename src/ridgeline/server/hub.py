"""Hub: the bridge between asyncio and the engine client.

Owns the pump thread, the threads that parse and submit, and the streams of deltas to HTTP requests. Deltas cross to
the event loop once per pump, not once per token. Must not know any API's format.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from ridgeline.config import ServerConfig
from ridgeline.engine.client import EngineClient
from ridgeline.engine.ledger import Places
from ridgeline.engine.params import check_params
from ridgeline.engine.records import CANCELLED, Delta, Terms, check_prompt
from ridgeline.errors import EngineFailed, InvalidRequest, Overloaded
from ridgeline.server.errors import Unhealthy
from ridgeline.server.jobs import Event, Job
from ridgeline.server.metrics import Metrics
from ridgeline.server.record import Record
from ridgeline.server.remembered import Remembered
from ridgeline.server.stream import Stream

PUMP_S = 0.2  # longest wait of the pump thread, and so of a shutdown
KEEP_ALIVE_S = 15.0  # in which a stream says something
PROGRESS_S = 1.0  # between signs of a prompt that is being read
THREADS = 4
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
        self.remembered, self.keep_alive = Remembered(), KEEP_ALIVE_S
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="ridgeline-parse")
        self._thread = threading.Thread(target=self._pump, name="ridgeline-pump", daemon=True)
        self._stopping = threading.Event()
        self._pumped: list[tuple[Stream, Event]] = []
        self._streams: set[Stream] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._problem: str | None = None
        self._parsing, self._room = 0, client.info.max_requests + client.info.queue
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

    async def run(self, work: Callable[[], T]) -> T:
        """`work` in a thread: parsing, templates and tokenising may take long enough to stall other streams.

        Overloaded at once where more requests wait for this than the engine takes; one whose reader has left still
        counts until its work is done.
        """
        if self._parsing >= self._room:
            raise Overloaded(f"{self._parsing} requests are being read; try later", self.client.ledger.retry_after())
        self._parsing += 1
        working = self._threads.submit(work)
        working.add_done_callback(lambda _: self.post(self._parsed))  # who waits for it may have left before
        return await asyncio.wrap_future(working)

    def _parsed(self) -> None:
        self._parsing -= 1

    def book(self, jobs: Sequence[Job]) -> Places:
        """Places for several jobs, so that all are taken or none. InvalidRequest where one is wrong, or all would never
        fit together."""
        asked = sum(job.params.width for job in jobs)
        if asked > self._room:
            raise InvalidRequest(f"the request asks for {asked} answers; at most {self._room} fit in the queue")
        for job in jobs:
            check_params(job.params, self.client.info.vocab)
            check_prompt(self.client.info, job.prompt, job.params)
        return self.client.ledger.book(asked)

    def submit(self, stream: Stream, number: int, job: Job, terms: Terms, places: Places | None) -> int:
        """Thread-safe. The client's id of the request; typed errors where it refuses."""
        if problem := self._problem or self.client.gone():
            raise Unhealthy(problem)
        return self.client.submit(job.prompt, job.params, partial(self._collect, stream, number), terms, places)

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
            self.later(min(PROGRESS_S, self.keep_alive), self._look)

    def add(self, stream: Stream) -> None:
        self._streams.add(stream)
        self.remembered.begin(stream.record.name, stream.id, stream.ids)

    def discard(self, stream: Stream) -> None:
        self._streams.discard(stream)
        self.remembered.end(stream.record.name, stream.id, stream.ids)
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
                    self.post(partial(self._spread, batch))
        except Exception as fault:
            log.exception("the pump thread failed")
            self._problem = f"the server lost its engine: {type(fault).__name__}"
            self.post(partial(self._fail_all, self._problem))

    def post(self, call: Callable[[], None]) -> None:
        """Have it called in the event loop, from any thread."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop is closed: a forced shutdown left nobody to tell
            self._stopping.set()

    def _spread(self, batch: list[tuple[Stream, Event]]) -> None:
        now = time.perf_counter()
        self.metrics.stepped(self.client.ledger.last)
        for stream, event in batch:
            stream.push(event, now)
        for stream in {stream: None for stream, _ in batch}:
            stream.flush()

    def _fail_all(self, why: str) -> None:
        for stream in list(self._streams):
            stream.fail(EngineFailed(why))
