"""Patience with connections: one that has not sent the head of a request for long is closed, so none holds on for good.

uvicorn's own time-out begins after an answer only, and ends with the next byte.
"""

from __future__ import annotations

import asyncio
import logging

from uvicorn.protocols.http.auto import AutoHTTPProtocol

_NOTHING = object()


def patient(seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol for HTTP, with connections closed after one to two times so many seconds without a request."""

    class Patient(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self._before: object = _NOTHING
            self._look()

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
