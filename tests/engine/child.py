"""The worker over a fake engine, as a child of test_restarts.py: prompts make it die, hang or refuse to load.

`python child.py FD PROGRESS CONFIG`: the file named by the config's model, if it exists, says what loading does this
time.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import msgspec
from fake import fake_engine

from ridgeline.config import EngineConfig
from ridgeline.engine import worker
from ridgeline.engine.progress import Progress
from ridgeline.engine.wire import Channel, ToEngine
from ridgeline.errors import ModelFileError

POISON, STUCK = 3, 4  # the fake samples nothing under 10


def load(config: EngineConfig) -> SimpleNamespace:
    note = Path(config.model)
    what = note.read_text() if note.exists() else ""
    if what == "fail":
        raise ModelFileError("the disk is gone")
    if what == "hang":
        time.sleep(60)
    engine = fake_engine(pages=32 if what == "shrink" else 64)
    run = engine.executor.step.run

    def cursed(batch):
        if POISON in batch["ids"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if STUCK in batch["ids"]:
            time.sleep(60)
        time.sleep(0.001)
        return run(batch)

    engine.executor.step.run = cursed
    return SimpleNamespace(engine=engine, opened=SimpleNamespace(backend=None))


if __name__ == "__main__":
    worker.load = load
    with suppress(EOFError, ConnectionError):
        config = EngineConfig(**msgspec.json.decode(sys.argv[3]))
        channel = Channel(socket.socket(fileno=int(sys.argv[1])), ToEngine)
        worker.serve(channel, config, Progress(int(sys.argv[2])))
