"""What a client can tell of a request at any time: in the queue, without an engine, and after its end."""

from __future__ import annotations

from collected import Collected, drain, greedy, prompt_of
from fake import fake_engine

from ridgeline.engine.client import LocalClient
from ridgeline.engine.ledger import Ledger
from ridgeline.engine.records import CANCELLED, FAILED, NO_TERMS


def test_one_that_nobody_has_looked_at_waits_its_turn():
    client = LocalClient(fake_engine(max_requests=1))
    ids = [client.submit(prompt_of(20, i), greedy(30), Collected()) for i in range(4)]
    assert client.ledger.why(ids[3]) == ["choice 0 waits for an engine process that can take it"]
    client.pump()
    assert client.ledger.why(ids[0])[0].startswith("choice 0 starts")
    assert client.ledger.why(ids[1])[0].startswith("choice 0 waits: 1 sequences run")
    assert client.ledger.why(ids[3]) == ["choice 0 waits its turn: 3 sequences wait, and others are before it"]
    client.cancel(ids[3])
    drain(client)
    assert client.ledger.why(ids[3]) == ["choice 0 ends (cancelled) with 0 tokens"]
    assert client.ledger.why(ids[2])[-1] == "choice 0 ends (length) with 30 tokens"
    assert client.ledger.why(99) == []


def test_one_that_ends_without_an_engine_says_how():
    ledger = Ledger(fake_engine().info)
    id = ledger.accept(prompt_of(9), greedy(30, n=2), Collected(), NO_TERMS).id
    deaths = 0
    while not ledger.empty:
        ledger.due()
        ledger.engine_died()
        deaths += 1
    told = ledger.why(id)
    assert sum("new engine process" in line for line in told) == 2 * deaths == 6
    assert told[-2:] == [f"choice {c} ends ({FAILED}) with 0 tokens" for c in range(2)]
    last = ledger.accept(prompt_of(9), greedy(30), Collected(), NO_TERMS).id
    ledger.fail_all(CANCELLED)
    assert ledger.why(last) == ["choice 0 ends (cancelled) with 0 tokens"]
