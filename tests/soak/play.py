"""Plays a scenario on an engine in this process: step for step the same each time."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass, field

from ridgeline.engine.client import LocalClient
from ridgeline.engine.engine import Engine
from ridgeline.engine.records import check_room
from ridgeline.errors import InvalidRequest, Overloaded
from soak.engines import Clock, Engines, Timed
from soak.judge import Request
from soak.scenario import Ask, Scenario


@dataclass
class Played:
    """The requests that were accepted, in order, and what else is counted."""

    requests: list[Request] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    digest: int = 0  # of all batches that the step was given


def submit(client, ask: Ask, played: Played) -> Request | None:
    """Submit one ask; what cannot be served is refused, and counted."""
    played.counts["asks"] += 1
    try:
        r = Request(ask, check_room(client.info, len(ask.prompt), ask.params))
        r.id = client.submit(ask.prompt, r.params, r.seen, ask.terms)
    except (InvalidRequest, Overloaded) as refused:
        played.counts[f"refused: {type(refused).__name__}"] += 1
        return None
    played.requests.append(r)
    played.counts["requests of several choices"] += r.params.n > 1
    return r


def leave(client, played: Played, now: int) -> list[Request]:
    """Cancel the requests whose client goes away now."""
    leaving = [r for r in played.requests if not r.left and not r.ended and _goes(r, now)]
    for r in leaving:
        r.left = True
        client.cancel(r.id)
    return leaving


def _goes(r: Request, now: int) -> bool:
    return r.wants_to_leave or 0 <= r.ask.gone_at <= now


def play(s: Scenario, engines: Engines) -> Played:
    """AssertionError where pages do not balance, somebody who left keeps them, or somebody starves."""
    clock, played = Clock(), Played()
    engine, step = engines.crowded(s, clock)
    client, asks, deaths = LocalClient(engine), list(s.asks), list(s.deaths)
    now = spare = 0
    while asks or not client.idle:
        if asks and client.idle:
            now = max(now, asks[0].at)
        while asks and asks[0].at <= now:
            r = submit(client, asks.pop(0), played)
            spare += _most_steps(r, s) if r else 0
        if deaths and deaths[0] <= now:
            deaths.pop(0)
            _tally(engine, step, played)
            engine, step = engines.crowded(s, clock)
            client.engine = engine
            client._ledger.engine_died()
            played.counts["engines lost"] += 1
        spare -= not client.idle
        leaving = leave(client, played, now)
        client.pump()
        engine.scheduler.audit()
        assert all(r.ended for r in leaving), "a request that was cancelled did not end within a step"
        now += 1
        assert spare >= 0, f"somebody starves: {[engine.why(r.id) for r in played.requests if not r.ended][:3]}"
    _settled(engine)
    _tally(engine, step, played)
    played.counts["tokens"] = sum(r.seen.delivered for r in played.requests)
    return played


def _most_steps(r: Request, s: Scenario) -> int:
    """One for each of its tokens, in each engine, and some; as many as fly where a token waits for the one before."""
    return s.depth * (1 + len(s.deaths)) * (r.params.n * (len(r.ask.prompt) + (r.params.max_tokens or 0)) + 4)


def _tally(engine: Engine, step: Timed, played: Played) -> None:
    done = engine.scheduler.counters
    played.digest = zlib.crc32(step.digest.to_bytes(4, "little"), played.digest)
    played.counts.update(
        steps=step.steps, preemptions=done.preemptions, cached_tokens=done.cached_tokens,
        recomputed_tokens=done.recomputed_tokens,
    )  # fmt: skip


def _settled(engine: Engine) -> None:
    """Nothing is left of requests that have ended, but pages in the prefix cache, all of which can be evicted."""
    pool, scheduler = engine.pool, engine.scheduler
    assert pool.used == 0, f"{pool.used} pages are held by nobody"
    assert not scheduler.running and not scheduler.waiting and not engine._live and not engine._prompts
    assert engine.cache.make_room(pool.total) and pool.free == pool.total, "the prefix cache holds on to pages"
    scheduler.audit()
