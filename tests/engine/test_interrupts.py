"""Ctrl-C at any line of a call: it is heard, and the model serves the next call as if nothing had been."""

from __future__ import annotations

import signal
import sys

import pytest
from collected import prompt_of
from fake import fake_engine

import toy
from ridgeline import LLM, SamplingParams
from ridgeline.engine.client import LocalClient

PROMPTS = [prompt_of(20 + 9 * i, i) for i in range(4)]
PARAMS = SamplingParams(n=2, max_tokens=6, seed=7)
PLACES = ("ridgeline/engine", "ridgeline/llm.py")
pytestmark = pytest.mark.usefixtures("heard")


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    """A model's tokenizer over an engine that takes no time."""
    folder = toy.write(tmp_path_factory.mktemp("toy"))
    made = LLM(str(folder), backend="reference", activations="float32", kv_memory=8 << 20)
    made.client = LocalClient(fake_engine())
    return made


class Lines:
    """Counts the lines that run, and interrupts at one of them."""

    def __init__(self, at: int) -> None:
        self.seen, self._at = 0, at

    def __call__(self, frame, event, arg):
        name = frame.f_code.co_filename
        if "interrupts" in name or not any(place in name for place in PLACES):
            return None
        if event == "line":
            self.seen += 1
            if self.seen == self._at:
                signal.raise_signal(signal.SIGINT)
        return self


def traced(work, at: int) -> int:
    lines = Lines(at)
    sys.settrace(lines)
    try:
        work()
    finally:
        sys.settrace(None)
    return lines.seen


def ids(llm) -> list[list[int]]:
    return [[t.id for t in c.tokens] for o in llm.generate(PROMPTS, PARAMS) for c in o.completions]


def test_anywhere_in_generate(llm):
    alone, before = ids(llm), signal.getsignal(signal.SIGINT)
    total = traced(lambda: ids(llm), -1)
    assert total > 2000
    for at in range(1, total, total // 60):
        with pytest.raises(KeyboardInterrupt):
            traced(lambda: ids(llm), at)
        assert signal.getsignal(signal.SIGINT) is before
        engine = llm.client.engine
        assert llm.client.idle and not engine._live and engine.pool.used == 0
        engine.scheduler.audit()
        assert ids(llm) == alone


def test_anywhere_in_a_stream(llm):
    def read() -> list[int]:
        return [t.id for delta in llm.stream(PROMPTS[0], PARAMS) for t in delta.tokens]

    alone, total = read(), traced(read, -1)
    for at in range(1, total, total // 30):
        with pytest.raises(KeyboardInterrupt):
            traced(read, at)
        llm.client.pump(0.0)  # the cancellation
        assert read() == alone
