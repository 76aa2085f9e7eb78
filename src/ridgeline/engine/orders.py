"""What a client's messages do to an engine, in this process or in its own."""

from __future__ import annotations

from ridgeline.engine.engine import Engine
from ridgeline.engine.records import Cancel, Close, Pause, Submit, ToEngine


def handle(engine: Engine, message: ToEngine) -> None:
    """Apply one message to an engine."""
    if isinstance(message, Submit):
        engine.submit(message)
    elif isinstance(message, Cancel):
        engine.cancel(message.id, message.reason)
    elif isinstance(message, Pause):
        engine.pause(message.id)
    elif isinstance(message, Close):
        engine.close()
    else:
        engine.resume(message.id)
