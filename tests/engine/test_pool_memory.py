"""The KV pool is reserved whole and has memory as it is used; where the system has none left it stays as it is."""

from __future__ import annotations

import importlib.util
import logging
import random
from pathlib import Path

import msgspec
import pytest
from collected import Collected, drain, greedy, prompt_of, run, start
from fake import fake_engine

import tiny
import toy
from ridgeline import LLM, SamplingParams
from ridgeline.engine.client import LocalClient
from ridgeline.engine.load import committed
from ridgeline.engine.pages import SLAB, PagePool
from ridgeline.engine.records import PAGE
from ridgeline.errors import ConfigError

needs_native = pytest.mark.skipif(
    importlib.util.find_spec("ridgeline.backends.cpu._native") is None, reason="the native backend is not built"
)


class System:
    """Memory for `pages` pages."""

    def __init__(self, pages: int) -> None:
        self.pages, self.asked = pages, 0

    def __call__(self, pages: int) -> bool:
        self.asked += 1
        if pages > self.pages:
            return False
        self.pages -= pages
        return True


@pytest.mark.parametrize("seed", range(5))
def test_accounts_balance_while_memory_comes_and_goes(seed):
    rng, system = random.Random(seed), System(10)
    pool, held, highest = PagePool(30, system), [], -1
    for _ in range(3000):
        if rng.random() < 0.02:
            system.pages += rng.choice([0, 4, 9])
        if rng.random() < 0.55 and pool.has(1):
            held.append(pool.take(rng.choice([-1, *held])))
            highest = max(highest, held[-1])
        elif held:
            pool.give(held.pop(rng.randrange(len(held))))
        pool.audit()
        assert pool.used == len(held) and highest < pool._committed
    assert pool._committed <= 30


def test_low_pages_come_first_and_slabs_are_asked_for_once():
    system = System(100)
    pool = PagePool(64, system)
    for _ in range(50):
        pages = [pool.take() for _ in range(2 * SLAB)]
        assert max(pages) < 2 * SLAB
        for page in pages:
            pool.give(page)
    assert system.asked == 2


@pytest.mark.parametrize("admission", ["overcommit", "strict"])
def test_a_pool_that_may_not_grow_serves_on(admission):
    """Memory for 12 pages of 40: the answers are the same, and the prefix cache lives within it."""
    requests = [(prompt_of(100 + 30 * i, i % 3), greedy(150)) for i in range(8)]
    solo = [run(fake_engine(), [r])[0].tokens[0] for r in requests]
    engine = fake_engine(pages=40, commit=System(12), admission=admission)
    assert [s.tokens[0] for s in run(engine, requests)] == solo
    assert engine.pool.withheld == 28


def test_what_was_promised_and_has_no_memory_fails_alone():
    engine = fake_engine(pages=40, commit=System(8))
    client = LocalClient(engine)
    long, short = start(client, [(prompt_of(20), greedy(900)), (prompt_of(30, 1), greedy(40))])
    drain(client)
    assert long.finish[0] == ["no_memory"] and 7 * PAGE < len(long.tokens[0]) + 20 <= 8 * PAGE + 1
    assert short.finish[0] == ["length"]
    seen = Collected()
    client.submit(prompt_of(20), greedy(100), seen)
    drain(client)
    assert seen.finish[0] == ["length"]


def test_it_is_said_once(caplog):
    left, asked = [1 << 30], []
    commit = committed(1 << 20, lambda: asked.append(1) or left[0])
    with caplog.at_level(logging.WARNING):
        assert all(commit(16) for _ in range(8)) and len(asked) == 1  # an eighth of what is left is used first
        left[0] = 70 << 20
        assert not commit(16) and not commit(16) and commit(4)
    assert len(caplog.records) == 1 and "70 MiB left" in caplog.text and "--kv-memory" in caplog.text


def resident() -> int:
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(rows["VmRSS"].split()[0]) << 10


@needs_native
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_memory_is_touched_with_use(tmp_path):
    """A pool of half a gigabyte costs nothing until its pages are used, and then what those take."""
    folder = str(toy.write(tmp_path, tiny.changed(toy.CONFIG, max_position_embeddings=1 << 16)))
    small = LLM(folder, kv_memory=8 << 20, threads=1)
    before = resident()
    llm = LLM(folder, kv_memory=1 << 29, threads=1)
    assert llm.info.pages * llm.info.page_bytes > 256 << 20
    assert resident() - before < 48 << 20
    idle = resident()
    llm.generate([[1, 2, 3]], SamplingParams(max_tokens=20, ignore_eos=True))
    assert resident() - idle < 16 << 20
    small.close()


@needs_native
def test_a_pool_beyond_all_address_space_is_refused_by_name():
    from ridgeline.backends.cpu.backend import _reserved

    with pytest.raises(ConfigError, match="--kv-memory"):
        _reserved(1 << 48)


def test_a_half_read_prompt_goes_on_while_the_system_refuses():
    """What is available may not be there: the step takes less of the prompt then."""
    willing = [True]
    engine = fake_engine(pages=16, step_tokens=400, max_requests=6, context=1024, commit=lambda pages: willing[0])
    client, few = LocalClient(engine), msgspec.structs.replace(engine.scheduler.limits, tokens=100)
    seen = start(client, [(prompt_of(60, i), greedy(250)) for i in (1, 2)])
    for _ in range(3):
        client.pump()
    many, engine.scheduler.limits = engine.scheduler.limits, few
    seen += start(client, [(prompt_of(600, 4), greedy(8))])
    client.pump()
    client.pump()
    client.pause(3)
    for _ in range(160):
        client.pump()
    engine.scheduler.limits, willing[0] = many, False
    client.resume(3)
    drain(client)
    assert [x.finish[0] for x in seen] == [["length"]] * 3


def test_a_refusal_that_passes_ends_nothing():
    """The system's memory comes and goes: what runs is not given up at the first refusal."""
    refusals = [0]

    def commit(pages: int) -> bool:
        refusals[0] += 1
        return not 2 < refusals[0] < 50

    client = LocalClient(fake_engine(pages=16, context=1024, commit=commit))
    (seen,) = start(client, [(prompt_of(20), greedy(600))])
    drain(client)
    assert refusals[0] >= 50 and seen.finish[0] == ["length"]
