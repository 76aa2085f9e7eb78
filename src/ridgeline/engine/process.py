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
_CLOSED = "the engine is shut down"


class ProcessClient:
    """EngineClient over a child process. The constructor waits until the model is loaded or raises its typed error."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self._lock = threading.Lock()  # guards the channel against a restart
        self._fruitless = 0
        self._problem: str | None = None
        self.last: StepDelta | None = None
        self._child, self._channel, self.info = self._launch()
        self._ledger = Ledger(self.info)

    def submit(self, prompt: Sequence[int], params: SamplingParams, sink: Sink) -> int:
        with self._lock:  # recorded and sent as one: a restart in between would replay it and then send it again
            if self._problem is not None:
                raise errors.EngineFailed(self._problem)
            request = self._ledger.accept(prompt, params, sink)
            self._send(request)
        return request.id

    def cancel(self, id: int) -> None:
        with self._lock:
            self._ledger.cancel(id)
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
        with self._lock:
            self._problem = _CLOSED
        self._channel.sock.close()
        try:
            self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._ledger.fail_all("cancelled")

    def _launch(self) -> tuple[subprocess.Popen[bytes], Channel, EngineInfo]:
        """A child that has loaded the model, or its typed error."""
        ours, theirs = socket.socketpair()
        child = subprocess.Popen(command(theirs.fileno(), self.config), pass_fds=[theirs.fileno()])
        theirs.close()
        channel = Channel(ours, FromEngine)
        messages: list[FromEngine] = []
        try:
            while not messages:
                messages = channel.receive(None)
        except EOFError:
            raise errors.EngineFailed(f"the engine process ended while loading {self.config.model}") from None
        first = messages[0]
        if isinstance(first, LoadFailed):
            kind = getattr(errors, first.error, errors.EngineFailed)
            raise kind(first.message)
        assert isinstance(first, EngineInfo)
        return child, channel, first

    def _restart(self) -> None:
        """A new child, and every live request again, from where its client stands."""
        if self._problem == _CLOSED:
            return
        self._child.kill()
        self._child.wait()
        self._channel.sock.close()
        self._fruitless += 1
        if self._fruitless > _MAX_RESTARTS:
            self._give_up(f"the engine process died {_MAX_RESTARTS} times without finishing a step")
            return
        # Not under the lock while it loads: whoever submits meanwhile must not wait, and is replayed.
        try:
            child, channel, _ = self._launch()
        except errors.RidgelineError as wrong:
            self._give_up(f"the engine process died and could not load again: {wrong}")
            return
        with self._lock:
            self._child, self._channel = child, channel
            for message in self._ledger.replays():
                self._send(message)

    def _give_up(self, problem: str) -> None:
        with self._lock:  # nothing is accepted after this, so nothing can miss its end
            self._problem = problem
        self._ledger.fail_all(FAILED)

    def _send(self, message: Submit | Cancel) -> None:
        with contextlib.suppress(OSError):  # the child is gone: pump sees that and replays from the ledger
            self._channel.send(message)
