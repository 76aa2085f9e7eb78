"""The ledger: places booked for several requests at once, and steps with which an engine was lost."""

from __future__ import annotations

import msgspec
import pytest
from collected import Collected, greedy
from fake import fake_engine

from ridgeline.engine.ledger import Failures, Ledger
from ridgeline.engine.records import CANCELLED, LENGTH, NO_TERMS, Delta, StepDelta, Token
from ridgeline.errors import Overloaded


def test_booked_places_are_nobody_elses():
    ledger, room = Ledger(msgspec.structs.replace(fake_engine().info, max_requests=3, queue=2)), 5

    def ask(count, places=None):
        return ledger.accept([1, 2], greedy(4, n=count), Collected(), NO_TERMS, places).id

    places = ledger.book(room - 1)
    with pytest.raises(Overloaded, match=f"{room - 1} sequences"):
        ask(2)
    with pytest.raises(Overloaded):
        ledger.book(2)
    first, other = ask(room - 1, places), ask(1)
    with pytest.raises(Overloaded):
        ask(1)
    for choice in range(room - 1):
        ledger.deliver(Delta(first, choice, (), "", LENGTH))
    assert ledger.choices == 1
    with pytest.raises(Overloaded):
        ask(1)  # they are kept for what follows
    again = ask(room - 2, places)
    ledger.unbook(places)
    ask(1)
    with pytest.raises(Overloaded):
        ask(1)
    assert ledger.choices == room and len({first, other, again}) == 3


def test_a_step_with_which_an_engine_was_lost_read_prompts_or_did_not():
    ledger = Ledger(fake_engine().info)
    ledger.engine_died()
    assert ledger.failures == Failures()  # it was at nothing
    first, second = (ledger.accept([1, n], greedy(9), Collected(), NO_TERMS).id for n in range(2))
    ledger.engine_died()
    assert ledger.failures == Failures()  # nor had it heard of any
    ledger.due()
    ledger.engine_died()
    assert ledger.failures == Failures(reading=1)
    ledger.due()
    ledger.take(StepDelta(1, (Delta(first, 0, (Token(5),), "a"),), 1, 1, 0))
    ledger.engine_died()
    assert ledger.failures == Failures(reading=1, answering=1)  # the second waited
    ledger.due()
    ledger.take(StepDelta(1, (), 2, 0, 0))
    ledger.engine_died()
    assert ledger.failures == Failures(reading=2, answering=1)
    ledger.due()
    ledger.pause(first)
    ledger.cancel(second)
    ledger.deliver(Delta(second, 0, (), "", CANCELLED))
    ledger.engine_died()
    assert ledger.failures == Failures(reading=2, answering=1)


def test_a_new_engine_reads_again_what_had_begun():
    ledger = Ledger(fake_engine().info)
    first = ledger.accept([1, 2], greedy(9), Collected(), NO_TERMS).id
    ledger.due()
    ledger.take(StepDelta(1, (Delta(first, 0, (Token(5),), "a"),), 1, 0, 0))
    ledger.engine_died()
    assert ledger.failures == Failures(answering=1)
    ledger.due()
    ledger.engine_died()
    assert ledger.failures == Failures(reading=1, answering=1)
