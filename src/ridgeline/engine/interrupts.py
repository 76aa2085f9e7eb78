"""Ctrl-C between steps, not within them: a step that is cut in two leaves an engine that nobody can use."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Uninterrupted:
    """Within it SIGINT waits, and comes at the end. It is the main thread's alone; in others nothing has to wait."""

    def __enter__(self) -> None:
        self._came, self._handler = False, None
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            if callable(handler):
                self._handler = handler
                signal.signal(signal.SIGINT, self._note)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            if self._came:
                signal.raise_signal(signal.SIGINT)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = True  # and nothing of the frame, whose arrays would live on
