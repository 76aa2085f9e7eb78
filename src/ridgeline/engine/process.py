"""ProcessClient: the engine in a child process, restarted and replayed if it dies.

A stuck or crashed native thread cannot be undone inside a process, and the interpreter lock would cost whole steps;
so `serve` keeps the engine apart. A restart is invisible to clients: the same tokens follow (noise is a counter hash,
and a row's result depends on nothing but its own request).
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Sequence

from ridgeline import errors
from ridgeline.config import EngineConfig
from ridgeline.engine.client import Ledger, Sink
from ridgeline.engine.params import SamplingParams
from ridgeline.engine.records import FAILED, Cancel, EngineInfo, LoadFailed, StepDelta, Submit
from ridgeline.engine.wire import Channel, FromEngine
from ridgeline.engine.worker import command

_MAX_RESTARTS = 5  # without one delivered step in between


class ProcessClient:
    """EngineClient over a child process. The constructor waits until the model is loaded or raises its typed error."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self._lock = threading.Lock()  # guards the channel against a restart
        self._fruitless = 0
        self._problem: str | None = None
        self.last: StepDelta | None = None
        self.info = self._start()
        self._ledger = Ledger(self.info)

    def submit(self, prompt: Sequence[int], params: SamplingParams, sink: Sink) -> int:
        if self._problem is not None:
            raise errors.EngineFailed(self._problem)
        with self._lock:  # recorded and sent as one: a restart in between would replay it and then send it again
            request = self._ledger.accept(prompt, params, sink)
            self._send(request)
        return request.id

    def cancel(self, id: int) -> None:
        with self._lock:
            self._send(Cancel(id))

    def pump(self, timeout: float) -> None:
        try:
            messages = self._channel.receive(timeout)
        except EOFError:
            self._restart()
            return
        for message in messages:
            assert isinstance(message, StepDelta)
            self._fruitless, self.last = 0, message
            for delta in message.deltas:
                self._ledger.deliver(delta)

    @property
    def idle(self) -> bool:
        return self._ledger.empty

    @property
    def choices(self) -> int:
        return self._ledger.choices

    @property
    def pid(self) -> int:
        return self._child.pid

    def unhealthy(self) -> str | None:
        return self._problem

    def close(self) -> None:
        self._problem = "the engine is shut down"
        self._channel.sock.close()
        try:
            self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._ledger.fail_all("cancelled")

    def _start(self) -> EngineInfo:
        ours, theirs = socket.socketpair()
        self._child = subprocess.Popen(command(theirs.fileno(), self.config), pass_fds=[theirs.fileno()])
        theirs.close()
        self._channel = Channel(ours, FromEngine)
        messages: list[FromEngine] = []
        try:
            while not messages:
                messages = self._channel.receive(None)
        except EOFError:
            raise errors.EngineFailed(f"the engine process ended while loading {self.config.model}") from None
        first = messages[0]
        if isinstance(first, LoadFailed):
            kind = getattr(errors, first.error, errors.EngineFailed)
            raise kind(first.message)
        assert isinstance(first, EngineInfo)
        return first

    def _restart(self) -> None:
        """A new child, and every live request again, from where its client stands."""
        if self._problem == "the engine is shut down":
            return
        with self._lock:
            self._child.kill()
            self._child.wait()
            self._channel.sock.close()
            self._fruitless += 1
            if self._fruitless > _MAX_RESTARTS:
                self._problem = f"the engine process died {_MAX_RESTARTS} times without finishing a step"
            else:
                try:
                    self._start()
                except errors.RidgelineError as wrong:
                    self._problem = f"the engine process died and could not load again: {wrong}"
            if self._problem is None:
                for request in self._ledger.replays():
                    self._send(request)
                return
        self._ledger.fail_all(FAILED)

    def _send(self, message: Submit | Cancel) -> None:
        with contextlib.suppress(OSError):  # the child is gone: pump sees that and replays from the ledger
            self._channel.send(message)
