"""Ctrl-C at any line of a call: it is heard, and the engine serves the next call as if nothing had been."""

from __future__ import annotations

import signal
import sys

import pytest
from collected import Collected, drain, greedy, prompt_of, run
from fake import fake_engine

from ridgeline.engine.client import LocalClient
from ridgeline.engine.feed import Feeder, Work

REQUESTS = [(prompt_of(20 + 9 * i, i), greedy(6, n=1 + i % 2)) for i in range(4)]


def generate(client, sinks) -> None:
    """As LLM.generate does it."""
    feeder = Feeder(client, (Work(*r, s) for r, s in zip(REQUESTS, sinks, strict=True)))
    try:
        while feeder.fill():
            client.pump(0.0)
    except BaseException:
        feeder.cancel()
        drain(client)
        raise


class Lines:
    """Counts the lines that run, and interrupts at one of them."""

    def __init__(self, at: int) -> None:
        self.seen, self._at = 0, at

    def __call__(self, frame, event, arg):
        if "ridgeline/engine" not in frame.f_code.co_filename or "interrupts" in frame.f_code.co_filename:
            return None
        if event == "line":
            self.seen += 1
            if self.seen == self._at:
                signal.raise_signal(signal.SIGINT)
        return self


def traced(client, at: int) -> int:
    lines, sinks = Lines(at), [Collected() for _ in REQUESTS]
    sys.settrace(lines)
    try:
        generate(client, sinks)
    finally:
        sys.settrace(None)
    return lines.seen


def test_anywhere():
    alone = [s.tokens for s in run(fake_engine(), REQUESTS)]
    client = LocalClient(fake_engine())
    total = traced(client, -1)
    assert total > 2000
    before = signal.getsignal(signal.SIGINT)
    for at in range(1, total, total // 60):
        with pytest.raises(KeyboardInterrupt):
            traced(client, at)
        assert signal.getsignal(signal.SIGINT) is before
        assert client.idle and not client.engine._live and not client.engine._prompts
        sinks = [Collected() for _ in REQUESTS]
        generate(client, sinks)
        assert [s.tokens for s in sinks] == alone
