"""Turns of grammars: who waits is told why it was in vain, and what nobody waits for is not compiled."""

from __future__ import annotations

import threading
import time

import pytest

from letters import Letters, of_schema
from ridgeline.engine.params import Grammar
from ridgeline.errors import InvalidRequest, Overloaded
from ridgeline.guidance import compiler as module
from ridgeline.guidance.compiler import Compiler, NotCompiled

SLOW, QUICK = Grammar("regex", "a+"), Grammar("regex", "b+")


@pytest.fixture
def held():
    """A compiler that works on SLOW until the gate opens, the gate, and what has been compiled."""
    compiler, gate, done = Compiler(Letters(), 320), threading.Event(), []
    inner = compiler._compile

    def compile(grammar):
        gate.wait(20)
        done.append(grammar)
        return inner(grammar)

    compiler._compile = compile
    future = compiler.compile(SLOW)
    while not future.running():
        time.sleep(0.001)
    yield compiler, gate, done
    gate.set()


def test_who_waited_for_others_may_come_again(held):
    compiler, gate, _ = held
    with pytest.raises(NotCompiled) as refused:
        compiler.check(QUICK, 100, wait_s=0)
    assert refused.value.status == 429 and refused.value.retry_after > 0
    gate.set()
    assert compiler.check(QUICK, 100) == []


def test_a_grammar_that_itself_takes_long_is_at_fault(held, monkeypatch):
    compiler, _, _ = held
    with pytest.raises(NotCompiled):
        compiler.check(SLOW, 100, wait_s=0)
    monkeypatch.setattr(module, "_OWN_S", 0.0)
    with pytest.raises(InvalidRequest, match="simplify"):
        compiler.check(SLOW, 100, wait_s=0)


def test_what_nobody_waits_for_any_more_is_compiled_when_it_is_asked_for_again(held):
    compiler, gate, done = held
    late, wanted = compiler.compile(QUICK, wait_s=0), Grammar("regex", "c+")
    compiler.compile(wanted, wait_s=0)
    kept = compiler.compile(wanted)
    gate.set()
    kept.result()
    with pytest.raises(Overloaded):
        late.result()
    assert done == [SLOW, wanted]
    assert compiler.check(QUICK, 100) == [] and done == [SLOW, wanted, QUICK]


def test_patterns_that_are_never_asked_for_do_no_harm():
    schema = {"type": "null", "$defs": {"x": {"pattern": r"\x{D800}"}, "y": {"pattern": "(){4000000000}{4000000000}"}}}
    assert Compiler(Letters(), 320).check(of_schema(schema), 100) == []
