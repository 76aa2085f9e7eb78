"""Plays a scenario on an engine in this process: step for step the same each time."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass, field

from ridgeline.engine.client import LocalClient
from ridgeline.engine.engine import Engine
from ridgeline.engine.records import Terms, check_room
from ridgeline.errors import InvalidRequest, Overloaded
from soak.engines import Clock, Engines, Timed
from soak.judge import Request
from soak.scenario import Ask, Scenario, within


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
    p = r.params
    played.counts.update({
        "requests of several choices": p.n > 1, "requests with seeds": bool(p.seeds), "searches": p.beams > 0,
        "marked requests": p.watermark is not None,
        "requests with a salt": bool(ask.terms.salt),
    })  # fmt: skip
    return r


def leave(client, played: Played, now: int) -> list[Request]:
    """Cancel the requests whose client goes away now."""
    leaving = [r for r in played.requests if not r.left and not r.ended and _goes(r, now)]
    for r in leaving:
        r.left = True
        client.cancel(r.id)
    return leaving


def halt(client, played: Played, now: float) -> None:
    """Pause the requests whose readers fall behind now, and resume those whose readers are back."""
    for r in played.requests:
        if r.ended:
            continue
        if r.back_at is not None and r.back_at <= now:
            r.back_at = None
            client.resume(r.id)
            played.counts["resumes"] += 1
        elif r.back_at is None and r.halts and r.halts[0].after <= r.seen.delivered:
            r.back_at = now + r.halts.pop(0).time
            client.pause(r.id)
            played.counts["pauses"] += 1


def _goes(r: Request, now: int) -> bool:
    return r.wants_to_leave or 0 <= r.ask.gone_at <= now


def play(s: Scenario, engines: Engines) -> Played:
    """AssertionError where pages do not balance or are shared with strangers, somebody who left keeps them, or somebody
    starves.
    """
    clock, played, now, spare = Clock(), Played(), 0, 0
    commit = (lambda pages: not within(s.scarce, now)) if s.scarce else None
    engine, step = engines.crowded(s, clock, commit)
    client, asks, deaths = LocalClient(engine), list(s.asks), list(s.deaths)
    while asks or not client.idle:
        if asks and client.idle:
            now = max(now, asks[0].at)
        while asks and asks[0].at <= now:
            r = submit(client, asks.pop(0), played)
            spare += _most_steps(r, s) if r else 0
        if deaths and deaths[0] <= now:
            deaths.pop(0)
            _tally(engine, step, played)
            engine, step = engines.crowded(s, clock, commit)
            client.engine = engine
            client.ledger.engine_died()
            played.counts["engines lost"] += 1
        spare += _press(engine) if now % 8 == 0 and within(s.pressed, now) else 0
        spare -= not client.idle
        halt(client, played, now)
        leaving = leave(client, played, now)
        client.pump()
        engine.scheduler.audit()
        _apart(engine, s, played)
        _led(engine)
        played.counts["steps pressed"] += within(s.pressed, now)
        played.counts["steps without memory"] += engine.pool.withheld > 0
        assert all(r.ended for r in leaving), "a request that was cancelled did not end within a step"
        now += 1
        assert spare >= 0, f"somebody starves: {[engine.why(r.id) for r in played.requests if not r.ended][:3]}"
    now = max((behind for _, behind in s.scarce), default=now)
    _settled(engine)
    _tally(engine, step, played)
    played.counts["tokens"] = sum(r.seen.delivered for r in played.requests)
    return played


def _led(engine: Engine) -> None:
    """What the prefix cache has matched of a sequence are its tokens."""
    scheduler = engine.scheduler
    for x in (*scheduler.running, *scheduler.waiting, *scheduler.paused):
        for node in {x.match, x.node}:
            led = [token for step in node.path() for token in step.tokens]
            assert led == x.tokens[: len(led)], f"the prefix cache leads request {x.id}, choice {x.choice} astray"


def _press(engine: Engine) -> int:
    """Have all that run give way to nobody; the most steps that this costs."""
    running = [*engine.scheduler.running]
    for s in running:
        engine.scheduler._preempt(s, s)
    return sum(len(s.tokens) + 1 for s in running)


def _most_steps(r: Request, s: Scenario) -> int:
    """One for each of its tokens, in each engine and after each pause, and some; as many as fly where a token waits for
    the one before.
    """
    halts = r.ask.halts
    tokens = (1 + len(halts)) * r.params.width * (len(r.ask.prompt) + (r.params.max_tokens or 0))
    return s.depth * (1 + len(s.deaths)) * (tokens + 4) + sum(h.time + 1 for h in halts)


def _apart(engine: Engine, s: Scenario, played: Played) -> None:
    """Pages are shared only between those who may know of each other."""
    terms = {r.id: r.ask.terms for r in played.requests}
    holders: dict[int, Terms] = {}
    for x in (*engine.scheduler.running, *engine.scheduler.paused):
        mine = terms[x.id]
        for page in {page for table in x.tables for page in table if page >= 0}:
            other = holders.setdefault(page, mine)
            assert other.salt == mine.salt, f"page {page} is shared under two salts"
            assert other.tenant == mine.tenant or s.prefix_sharing == "all", f"page {page} is shared by two tenants"
            played.counts["pages shared by two tenants"] += other.tenant != mine.tenant


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
    assert not scheduler.running and not scheduler.waiting and not scheduler.paused
    assert not engine._live and not engine._prompts and not engine._searches
    assert engine.cache.make_room(pool.total) and pool.free == pool.total, "the prefix cache holds on to pages"
    scheduler.audit()
