"""How far prompts that take several steps have been read."""

from __future__ import annotations

from collected import greedy, prompt_of
from fake import fake_engine

from ridgeline.engine.client import LocalClient


def test_the_engine_says_how_far_prompts_are_read():
    client = LocalClient(fake_engine(step_tokens=32))
    done, seen = [], []
    id = client.submit(prompt_of(100), greedy(2), done.append)
    while not client.idle:
        client.pump()
        seen.append(client.ledger.progress(id))
    assert seen[:3] == [(32, 100), (64, 100), (96, 100)] and sum(len(d.tokens) for d in done) == 2
    assert client.ledger.progress(id) == (0, 0)
