"""The prefix cache beside the engine: what is looked up again, and what is forgotten."""

from __future__ import annotations

import random

from collected import Collected, greedy, prompt_of
from fake import fake_engine

from ridgeline.engine.client import LocalClient
from ridgeline.engine.pages import PagePool
from ridgeline.engine.prefix import PrefixCache
from ridgeline.engine.records import PAGE, GroupInfo, Terms


def test_tenants_that_left_nothing_are_forgotten():
    engine = fake_engine(pages=8, context=512)
    client = LocalClient(engine)
    for i in range(300):
        client.submit(prompt_of(100 if i % 3 else 5, i), greedy(2), Collected(), Terms(tenant=f"tenant {i}"))
        while not client.idle:
            client.pump()
    assert len(engine.cache._roots) <= engine.pool.total


def test_a_match_goes_on_from_the_one_before():
    """Through growth and eviction it is the one that a search from the root would find."""
    rng, pool = random.Random(0), PagePool(12)
    cache = PrefixCache(pool, [GroupInfo("kv", 0)])
    root = cache.root("")
    texts = [[rng.randrange(2) for _ in range(6) for _ in range(PAGE)] for _ in range(3)]
    stems = [[*a[: 3 * PAGE], *b[3 * PAGE :]] for a in texts for b in texts]
    kept = [root] * len(stems)
    for _ in range(2000):
        i = rng.randrange(len(stems))
        kept[i] = cache.match(stems[i], kept[i], len(stems[i]))
        assert kept[i] is cache.match(stems[i], root, len(stems[i]))
        node = kept[i]
        if rng.random() < 0.5 and cache.make_room(1) and node.known:
            at = node.depth * PAGE
            page = [pool.take()]
            cache.publish(node, tuple(stems[i][at : at + PAGE]), page)
            pool.give(page[0])
        pool.audit()


def test_those_that_wait_for_a_prefix_let_others_past():
    engine = fake_engine(pages=200, max_requests=4, step_tokens=16)
    client, crowd, other = LocalClient(engine), [Collected() for _ in range(8)], Collected()
    for i, sink in enumerate(crowd):
        client.submit([*prompt_of(300), i], greedy(3), sink)
    client.submit(prompt_of(10, 5), greedy(3), other)
    while not other.finish[0]:
        client.pump()
    assert not any(c.tokens[0] for c in crowd)


def test_a_step_is_timed_from_the_one_before():
    """Two in flight: each takes as long as between two commits, not as since its submission."""
    now = [0.0]
    engine = fake_engine(depth=2, clock=lambda: now[0])
    collect = engine.executor.collect

    def slow(ticket):
        now[0] += 0.010
        return collect(ticket)

    engine.executor.collect = slow
    client = LocalClient(engine)
    client.submit(prompt_of(5), greedy(200), Collected())
    while not client.idle:
        client.pump()
    (_, seconds), _ = engine.scheduler.pace._small, engine.scheduler.pace._large
    assert abs(seconds - 0.010) < 1e-4


def test_no_sequence_wastes_more_than_a_page():
    engine = fake_engine(pages=200, windows=(0, 100))
    client, rng = LocalClient(engine), random.Random(2)
    for i in range(12):
        client.submit(prompt_of(rng.randint(5, 400), i), greedy(rng.randint(5, 300)), Collected())
    while not client.idle:
        client.pump()
        for s in engine.scheduler.running:
            for table in s.tables:
                assert len(table) * PAGE - s.computed < PAGE
