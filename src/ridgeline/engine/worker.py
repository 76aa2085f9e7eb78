"""The engine process: load, say ready, then step while there is work. Started by process.py with a socket and a config.

It ends when the socket closes: an engine never outlives its server.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from dataclasses import asdict

import msgspec

from ridgeline.config import EngineConfig
from ridgeline.engine.client import handle
from ridgeline.engine.load import load
from ridgeline.engine.records import LoadFailed
from ridgeline.engine.wire import Channel, ToEngine
from ridgeline.errors import RidgelineError


def serve(channel: Channel, config: EngineConfig) -> None:
    """Run the engine until the channel closes."""
    try:
        engine = load(config).engine
    except RidgelineError as wrong:
        channel.send(LoadFailed(type(wrong).__name__, str(wrong)))
        return
    channel.send(engine.info)
    while True:
        for message in channel.receive(None if engine.idle else 0):
            handle(engine, message)
        if not engine.idle:
            channel.send(engine.step())  # without deltas too: it is the sign of life that process.py waits for


def command(fd: int, config: EngineConfig) -> list[str]:
    """The command line of a worker on an inherited socket."""
    return [sys.executable, "-m", "ridgeline.engine.worker", str(fd), msgspec.json.encode(asdict(config)).decode()]


def main() -> None:
    # A stop is the server's to handle, though Ctrl-C and service managers signal every process: ours ends with it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    fd, config = int(sys.argv[1]), EngineConfig(**msgspec.json.decode(sys.argv[2]))
    channel = Channel(socket.socket(fileno=fd), ToEngine)
    with contextlib.suppress(EOFError, ConnectionError):  # the server is gone
        serve(channel, config)


if __name__ == "__main__":
    main()
