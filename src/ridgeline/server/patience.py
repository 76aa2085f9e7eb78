"""Patience with connections: one that has not sent the head of a request for long is closed, so none holds on for good,
nor one whose head is endless.

uvicorn's own time-out begins after an answer only, and ends with the next byte; it keeps any number of headers.
"""

from __future__ import annotations

import asyncio
import logging

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 << 10  # of what is no body: a request line and headers, sizes of chunks, trailers
_NOTHING = object()


def patient(seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol for HTTP, with connections closed after one to two times so many seconds without a request."""

    class Patient(HttpToolsProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self._before: object = _NOTHING
            self._taken, self._has_head = 0, False  # bytes since the last of a body; whether what follows is trailers
            self._look()

        def data_received(self, data: bytes) -> None:
            self._taken += len(data)
            super().data_received(data)
            if self._taken > HEAD_BYTES:
                self.transport.close()

        def on_message_begin(self) -> None:
            self._has_head = False
            super().on_message_begin()

        def on_header(self, name: bytes, value: bytes) -> None:
            if not self._has_head:  # a trailer would be added to what was admitted
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._taken, self._has_head = 0, True
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._taken = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._taken = 0
            super().on_message_complete()

        def _look(self) -> None:
            waits = self.cycle is None or self.cycle.response_complete
            if waits and self._before is self.cycle:
                return self.transport.close()
            self._before = self.cycle if waits else _NOTHING
            if not self.transport.is_closing():
                self._timer = self.loop.call_later(seconds, self._look)

        def connection_lost(self, exc: Exception | None) -> None:
            self._timer.cancel()
            super().connection_lost(exc)

    return Patient


def ignore_lost_peers() -> None:
    """Say nothing of what was written to a client before it was known to be gone; asyncio does, for each write."""
    logging.getLogger("asyncio").addFilter(lambda record: "socket.send() raised" not in str(record.msg))
