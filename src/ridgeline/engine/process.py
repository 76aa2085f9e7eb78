"""ProcessClient: the engine in a child process, restarted and replayed if it dies or falls silent.

A stuck or crashed native thread cannot be undone inside a process, and the interpreter lock would cost whole steps;
so `serve` keeps the engine apart. A restart is invisible to clients: the same tokens follow (noise is a counter hash,
and a row's result depends on nothing but its own request).
"""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from queue import SimpleQueue
from typing import TYPE_CHECKING

from ridgeline import errors
from ridgeline.config import EngineConfig
from ridgeline.engine.client import check_grammar
from ridgeline.engine.ledger import Ledger, Places, Sink
from ridgeline.engine.params import SamplingParams
from ridgeline.engine.progress import Progress
from ridgeline.engine.records import (
    CANCELLED,
    FAILED,
    NO_TERMS,
    Close,
    EngineInfo,
    LoadFailed,
    StepDelta,
    Terms,
    ToEngine,
)
from ridgeline.engine.wire import Channel, FromEngine
from ridgeline.engine.worker import command

if TYPE_CHECKING:
    from ridgeline.guidance.compiler import Compiler

log = logging.getLogger(__name__)
_MAX_RESTARTS = 5  # without anything delivered in between
_BACKOFF_S = 0.5  # the first restart is immediate, the second after this, then doubling
_SLOW_LOAD = 10  # a reload may take this many times the first load, which had no limit
_LATE_S = 0.1  # a wait that ends later than this was our own stop, as in a container that is paused, not the child's
_KEEP_S = 20.0  # for writing what an orderly end keeps
_CLOSED = "the engine is shut down"


class Child:
    """An engine process, the channel to it and the thread that writes to it: `post` never waits for the child.

    What waits to be written is bounded by what the ledger accepts.
    """

    def __init__(self, config: EngineConfig) -> None:
        with contextlib.ExitStack() as undo:
            try:
                self.progress = undo.enter_context(contextlib.closing(Progress.create()))
                with self.progress.handed_over() as counter:
                    ours, theirs = socket.socketpair()
                    undo.enter_context(ours)
                    with theirs:
                        fds = theirs.fileno(), counter
                        self.process = subprocess.Popen(command(*fds, config), pass_fds=fds)
            except OSError as wrong:
                raise errors.EngineFailed(f"the engine process could not be started: {wrong}") from None
            undo.pop_all()
        self._seen = 0
        self.channel = Channel(ours, FromEngine)
        self._outgoing: SimpleQueue[ToEngine | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="ridgeline-writer", daemon=True)
        self._writer.start()

    def moved(self) -> bool:
        """Whether it has counted since this was last asked."""
        seen, self._seen = self._seen, self.progress.value
        return self._seen != seen

    @property
    def counts(self) -> bool:
        """Whether it counts as it works, or has nothing but messages to show."""
        return self._seen > 0

    def post(self, message: ToEngine) -> None:
        self._outgoing.put(message)

    def stop(self) -> None:
        """End the process and free all it took here; any number of times, from any thread."""
        self.process.kill()
        with contextlib.suppress(OSError):  # closed already
            self.channel.sock.shutdown(socket.SHUT_RDWR)  # wakes who reads or writes
        self.process.wait()
        self._outgoing.put(None)
        self._writer.join()
        self.channel.sock.close()
        self.progress.close()

    def finish(self, seconds: float) -> bool:
        """Let it end by itself, with what it has to write; whether it did so in time. Its last words are dropped."""
        self.post(Close())
        end = time.monotonic() + seconds
        with contextlib.suppress(EOFError):
            while (left := end - time.monotonic()) > 0:
                self.channel.receive(left)
            return False
        return True

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # the child is gone: pump sees that, and the ledger has every message
            while (message := self._outgoing.get()) is not None:
                self.channel.send(message)


class ProcessClient:
    """EngineClient over a child process. The constructor waits until the model is loaded or raises its typed error.

    A child that has work and shows no progress for `stall_s` seconds is replaced. One that counts barriers shows it
    within a step; one that does not speaks after every step only, so `silence_s` must exceed an honest one. To be safe
    both grow to twice the longest silence that ended well, and double while restarts bring nothing.
    """

    def __init__(self, config: EngineConfig, stall_s: float = 1.5, silence_s: float = 30.0) -> None:
        self.config, self._stall_s, self._silence_s = config, stall_s, silence_s
        self.compiler: Compiler | None = None  # whoever has the tokenizer gives it
        self._why = ""  # what befell the last child, until the next one is ready
        self._lock = threading.Lock()  # held briefly: ledger and child change together, and closing is final
        self._hearing = threading.Lock()  # one thread at a time reads what the child says
        self._problem: str | None = None
        self.restarts = 0
        self._fruitless = 0  # restarts since something was delivered
        self._silent = self._longest = 0.0  # seconds waited for the child's next word, and the most that was worth it
        self._restart_at: float | None = None  # when there is no child
        self._child = Child(config)
        try:
            self.info = _loaded(self._child, config.model)
        except BaseException:
            self._child.stop()
            raise
        # What was automatic is settled: a restart must give what requests were accepted for.
        info = self.info
        self._settled = replace(
            config, kv_memory=info.pages * info.page_bytes, context=info.context, threads=info.threads
        )
        self.ledger = Ledger(info)
        self._ready = True  # the child has loaded and may be sent requests

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        sink: Sink,
        terms: Terms = NO_TERMS,
        places: Places | None = None,
    ) -> int:
        check_grammar(self.compiler, self.info, prompt, params)  # may take long
        with self._lock:
            if self._problem is not None:
                raise errors.EngineFailed(self._problem)
            request = self.ledger.accept(prompt, params, sink, terms, places)
            self._post_due()
        return request.id

    def cancel(self, id: int, reason: str = CANCELLED) -> None:
        with self._lock:
            self.ledger.cancel(id, reason)
            self._post_due()

    def pause(self, id: int) -> None:
        with self._lock:
            self.ledger.pause(id)
            self._post_due()

    def resume(self, id: int) -> None:
        with self._lock:
            self.ledger.pause(id, False)
            self._post_due()

    def pump(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for the child and deliver what it says; replace it if it is gone or stuck."""
        if self._problem is not None:
            time.sleep(timeout)
        elif self._restart_at is None:
            self._hear(timeout)
        else:
            wait = self._restart_at - time.monotonic()
            time.sleep(max(0.0, min(timeout, wait)))
            if wait <= timeout:
                self._restart()

    @property
    def idle(self) -> bool:
        return self.ledger.empty

    @property
    def pid(self) -> int:
        return self._child.process.pid

    def gone(self) -> str | None:
        return self._problem

    def unhealthy(self) -> str | None:
        return self._problem or self._why or None

    def close(self) -> None:
        with self._lock:
            keeps = self._problem is None and self._ready and bool(self.config.prefix_cache_file)
            self._problem = _CLOSED
        if keeps:
            with self._hearing:
                if not self._child.finish(_KEEP_S):
                    log.warning("ridgeline: the prefix cache was not kept: it took over %g seconds", _KEEP_S)
        self._child.stop()
        self.ledger.fail_all(CANCELLED)

    def _post_due(self) -> None:
        if self._ready:
            for message in self.ledger.due():
                self._child.post(message)

    def _hear(self, timeout: float) -> None:
        begin = time.monotonic()
        left = max(self._patience - self._silent, 0.0)  # no longer: what is late is told at once
        try:
            with self._hearing:
                messages = self._child.channel.receive(min(timeout, left))
        except EOFError:
            self._lost("it ended")
            return
        self._silent += min(time.monotonic() - begin, timeout + _LATE_S)
        moved = self._child.moved()
        alive = bool(messages) or moved
        watched = not (self.ledger.quiet if self._ready else self.ledger.empty)
        if not alive and watched and self._silent > self._patience:
            self._lost(f"it did nothing for {self._silent:.1f} seconds")
            return
        if alive and self._ready:
            self._longest = max(self._longest, self._silent)
        if alive or not watched:
            self._silent = 0.0
        for message in messages:
            self._take(message)
        with self._lock:
            self._post_due()

    @property
    def _patience(self) -> float:
        """Seconds of silence that are too many."""
        least = self._stall_s if self._ready and self._child.counts else self._silence_s
        step = max(least * 2.0**self._fruitless, 2 * self._longest)
        return step if self._ready else step + _SLOW_LOAD * self.info.load_seconds

    def _take(self, message: FromEngine) -> None:
        if isinstance(message, StepDelta):
            self._fruitless = 0 if message.deltas else self._fruitless
            self.ledger.take(message)
        elif isinstance(message, LoadFailed):
            self._lost(f"it could not load again: {message.message}")
        elif other := _differences(self.info, message):
            self._lost(f"it came back with another {other}")
        else:
            with self._lock:
                self._ready, self._why = True, ""

    def _lost(self, why: str) -> None:
        """The child is gone or must go. Its requests wait for the next one, which may come at once or after a pause."""
        with self._lock:
            if self._problem is not None:
                return
            working, self._ready = self._ready, False
            self._why = f"the engine process is being replaced: {why}"
        self._child.stop()
        if not (working and self.ledger.engine_died()):
            self._fruitless += 1
        if self._fruitless > _MAX_RESTARTS:
            self._give_up(f"the engine process failed {self._fruitless} times and delivered nothing; at last {why}")
        else:
            self._restart_at = time.monotonic() + _BACKOFF_S * (2.0 ** max(self._fruitless - 1, 0) - 1)

    def _restart(self) -> None:
        """A new child, if nobody closed meanwhile. It loads while pump listens, and submits wait in the ledger."""
        try:
            with self._lock:
                if self._problem is None:
                    self._child, self._restart_at, self._silent = Child(self._settled), None, 0.0
                    self.restarts += 1
        except errors.EngineFailed as wrong:
            self._lost(str(wrong))

    def _give_up(self, problem: str) -> None:
        with self._lock:  # nothing is accepted after this, so nothing can miss its end
            self._problem = self._problem or problem
        self.ledger.fail_all(FAILED)


def _loaded(child: Child, model: str) -> EngineInfo:
    """What a new child says of the model, or its typed error."""
    messages: list[FromEngine] = []
    try:
        while not messages:
            messages = child.channel.receive(None)
    except EOFError:
        raise errors.EngineFailed(f"the engine process ended while loading {model}") from None
    first = messages[0]
    if isinstance(first, LoadFailed):
        kind = getattr(errors, first.error, errors.EngineFailed)
        raise kind(first.message)
    assert isinstance(first, EngineInfo)
    return first


def _differences(old: EngineInfo, new: EngineInfo) -> str:
    """Names of the fields in which two engines differ, but for the time of loading and what is known of losses."""
    names = (
        n for n in old.__struct_fields__ if n not in ("load_seconds", "notes") and getattr(old, n) != getattr(new, n)
    )
    return ", ".join(names)
