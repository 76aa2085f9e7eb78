"""The server process's main loop: uvicorn's, but it ends gently, and sleeps while there is nothing to do."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import count
from types import FrameType

import uvicorn

from ridgeline.server.hub import Hub

_DATE_S = 1.0  # how old the Date of an answer may be


class GentleServer(uvicorn.Server):
    """The first SIGINT or SIGTERM gives running answers `grace` seconds, while new ones are refused; a second one ends
    them at once. Streams are told.

    uvicorn's own loop wakes ten times a second to look whether it should end; each time costs as much as some streamed
    tokens.
    """

    def __init__(self, config: uvicorn.Config, hub: Hub, grace: float) -> None:
        super().__init__(config)
        self._hub, self._grace = hub, grace
        self._signals = count()  # atomic: a signal may arrive while the handler of another runs
        self._ended = asyncio.Event()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _DATE_S)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._hub.drain(0 if next(self._signals) else self._grace, self._end)

    def _end(self) -> None:
        self.should_exit = True
        self._ended.set()
