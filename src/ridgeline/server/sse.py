"""Server-sent events: the bytes of a data line, of comments that keep a connection alive and of OpenAI's end mark."""

from __future__ import annotations

from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"}

encode = msgspec.json.Encoder().encode


def prefill(done: int, total: int) -> bytes:
    """A comment: so many of the prompt's tokens have been read."""
    return b": prefill %d/%d\n\n" % (done, total)


def data(event: Any) -> bytes:
    """One event of JSON. JSON has no raw line break, so one `data:` line always holds it."""
    return b"data: " + encode(event) + b"\n\n"
