"""Server-sent events: the bytes of a data line, of a keep-alive comment and of OpenAI's end mark."""

from __future__ import annotations

from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"}

_ENCODER = msgspec.json.Encoder()


def data(event: Any) -> bytes:
    """One event of JSON. JSON has no raw line break, so one `data:` line always holds it."""
    return b"data: " + _ENCODER.encode(event) + b"\n\n"
