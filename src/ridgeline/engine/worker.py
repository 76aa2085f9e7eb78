"""The engine process: load, say ready, then step while there is work. Started by process.py with a socket and a config.

It ends when the socket closes: an engine never outlives its server.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict

import msgspec
import numpy as np

from ridgeline.backends.base import Counting
from ridgeline.config import EngineConfig
from ridgeline.engine.jsonlog import speak_json
from ridgeline.engine.load import Loaded, Observe, load
from ridgeline.engine.orders import handle
from ridgeline.engine.progress import Progress
from ridgeline.engine.records import Close, LoadFailed, ToEngine
from ridgeline.engine.wire import Channel
from ridgeline.errors import RidgelineError

_REST_S = 0.1  # between signs of life while all there is is paused
MAIN = "ridgeline.analysis.worker"  # calls `main`, and watches the steps
Watch = Callable[[Loaded], Observe | None]


def serve(channel: Channel, config: EngineConfig, progress: Progress, watch: Watch | None = None) -> None:
    """Run the engine until it is told to close or the channel is gone, and count as it goes on. `watch` gives an
    observer of its steps."""
    try:
        loaded = load(config)
    except RidgelineError as wrong:
        channel.send(LoadFailed(type(wrong).__name__, str(wrong)))
        return
    engine, backend = loaded.engine, loaded.opened.backend
    if engine.compiler is not None:
        engine.compiler.trial = None  # the server accepted no grammar without one
    if isinstance(backend, Counting):
        counter = progress.array()
        counter += np.uint64(1)  # says that there is something to watch
        backend.count_in(counter)
    if watch is not None:
        engine.observe = watch(loaded)
    channel.send(engine.info)
    while True:
        for message in channel.receive(None if engine.idle else _REST_S if engine.resting else 0):
            handle(engine, message)
            if isinstance(message, Close):
                return
        if not engine.idle:
            channel.send(engine.step())  # without deltas too: it is the sign of life that process.py waits for


def command(fd: int, progress: int, config: EngineConfig) -> list[str]:
    """The command line of a worker on an inherited socket and counter."""
    settings = msgspec.json.encode(asdict(config)).decode()
    return [sys.executable, "-m", MAIN, str(fd), str(progress), settings]


def main(watch: Watch | None = None) -> None:
    # A stop is the server's to handle, though Ctrl-C and service managers signal every process: ours ends with it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    config = EngineConfig(**msgspec.json.decode(sys.argv[3]))
    if config.log_json:
        speak_json()
    channel, progress = Channel(socket.socket(fileno=int(sys.argv[1])), ToEngine), Progress(int(sys.argv[2]))
    with contextlib.suppress(EOFError, ConnectionError):  # the server is gone
        serve(channel, config, progress, watch)
