"""Ctrl-C between steps, not within them: a step that is cut in two leaves an engine that nobody can use."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Uninterrupted:
    """Within it SIGINT waits until `let`, or the end. It is the main thread's alone; in others nothing has to wait."""

    def __init__(self) -> None:
        self._came = False
        handler = signal.getsignal(signal.SIGINT)
        mine = threading.current_thread() is threading.main_thread()
        self._handler = handler if mine and callable(handler) else None

    def __enter__(self) -> Uninterrupted:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._note)
        return self

    def let(self) -> None:
        """Hear now of what has come."""
        if self._came:
            self._came = False
            signal.signal(signal.SIGINT, self._handler)
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                signal.signal(signal.SIGINT, self._note)

    def __exit__(self, *error: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            if self._came:
                signal.raise_signal(signal.SIGINT)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = True  # and nothing of the frame, whose arrays would live on
