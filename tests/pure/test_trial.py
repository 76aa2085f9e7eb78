"""A grammar that would take all memory, or no end of time, takes neither from the server."""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from llguidance import LLMatcher

from letters import Letters, of_schema
from ridgeline.engine.params import Grammar
from ridgeline.errors import EngineFailed, InvalidRequest
from ridgeline.guidance import trial as module
from ridgeline.guidance.compiler import Compiler
from ridgeline.guidance.trial import Trial

GOOD = LLMatcher.grammar_from_regex("a+b")
TOGETHER = {"type": "string", "allOf": [{"pattern": f"a.{{{i}}}b"} for i in range(1, 61)]}  # takes 20 GB, and more
HOSTILE = LLMatcher.grammar_from_json_schema(json.dumps(TOGETHER))


def test_what_is_wrong_with_a_grammar_is_told():
    trial = Trial(60)
    assert trial.run(GOOD) == ""
    assert "Unknown format: odd" in trial.run(LLMatcher.grammar_from_json_schema({"type": "string", "format": "odd"}))
    assert trial.run(LLMatcher.grammar_from_regex("(?<=a)é" * 1000)) != ""  # and is not too long to be told
    process = trial._process
    assert trial.run(GOOD) == "" and trial._process is process


def test_a_grammar_that_takes_too_long_is_refused_and_the_next_is_not():
    trial = Trial(0.5)
    assert trial.run(GOOD) == ""
    begin = time.perf_counter()
    with pytest.raises(InvalidRequest, match=r"not compiled within 0\.5 seconds; simplify it"):
        trial.run(HOSTILE)
    assert 0.5 <= time.perf_counter() - begin < 5
    trial._seconds = 60
    assert trial.run(GOOD) == ""


def test_a_grammar_that_the_process_dies_of_is_refused_and_the_next_is_not():
    trial = Trial(60)
    trial.run(GOOD)
    threading.Timer(0.5, os.kill, (trial._process.pid, signal.SIGKILL)).start()
    with pytest.raises(InvalidRequest, match="not compiled in 1024 MiB of memory; simplify it"):
        trial.run(HOSTILE)
    assert trial.run(GOOD) == ""


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="the system shows no limits of a process")
def test_memory_is_bounded():
    trial = Trial(60)
    trial.run(GOOD)
    limits = Path(f"/proc/{trial._process.pid}/limits").read_text()
    bound = next(line for line in limits.splitlines() if line.startswith("Max address space"))
    assert bound.split()[3:5] == [str((1 << 30) + (256 << 20))] * 2


def test_one_that_ended_meanwhile_is_begun_anew():
    trial = Trial(60)
    trial.run(GOOD)
    trial._process.kill()
    trial._process.wait()
    assert trial.run(GOOD) == ""


@pytest.mark.parametrize("command", [["/nothing/of/this/name"], ["false"]])
def test_where_there_can_be_no_process_no_grammar_is_at_fault(command, monkeypatch):
    monkeypatch.setattr(module, "_COMMAND", command)
    with pytest.raises(EngineFailed, match="the process that tries grammars"):
        Trial(60).run(GOOD)


def test_the_process_ends_with_who_began_it():
    trial = Trial(60)
    trial.run(GOOD)
    process = trial._process
    del trial
    gc.collect()
    assert process.poll() is not None


def test_a_compiler_tries_first():
    compiler = Compiler(Letters(), 320)
    compiler.trial._seconds = 1.0
    with pytest.raises(InvalidRequest, match="simplify it"):
        compiler.check(of_schema(TOGETHER), 100)
    compiler.trial._seconds = 60
    assert compiler.check(Grammar("regex", "a+"), 100) == []
    with pytest.raises(InvalidRequest, match=r" at /format: not supported \("):
        compiler.check(of_schema({"type": "string", "format": "odd"}), 100)
