"""Places in the ledger: booked for several requests at once, and given back."""

from __future__ import annotations

import msgspec
import pytest
from collected import Collected, greedy
from fake import fake_engine

from ridgeline.engine.ledger import Ledger
from ridgeline.engine.records import LENGTH, NO_TERMS, Delta
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
