"""Plays a scenario over an engine process that is killed, stopped and broken when so many tokens were delivered."""

from __future__ import annotations

import math
import os
import signal
import time

from ridgeline.engine.process import ProcessClient
from soak.engines import Engines
from soak.play import Played, halt, leave, submit
from soak.scenario import Scenario

_STUCK_S = 120.0  # without a token


def play(s: Scenario, engines: Engines) -> Played:
    """AssertionError where the engine is not back, or is not the one the requests were accepted for."""
    client = ProcessClient(engines.config(s))
    try:
        return _play(s, client)
    finally:
        client.close()


def _play(s: Scenario, client: ProcessClient) -> Played:
    played, asks, kills = Played(), list(s.asks), list(s.kills)
    now, pid, idle_s = 0, client.pid, 0.0
    while asks or not client.idle:
        while asks and (asks[0].at <= now or client.idle):
            submit(client, asks.pop(0), played)
        halt(client, played, math.inf if _all_behind(played) else now)
        leave(client, played, now)
        if kills and kills[0].at <= now and not client.idle and client.unhealthy() is None:
            kill = kills.pop(0)
            os.kill(client.pid, getattr(signal, kill.signal))
            played.counts[kill.signal] += 1
        begin = time.monotonic()
        client.pump(0.05)
        before, now = now, sum(r.seen.delivered for r in played.requests)
        # No more than was asked for: this process may have been stopped itself.
        idle_s = 0.0 if now > before else idle_s + min(time.monotonic() - begin, 0.1)
        assert idle_s < _STUCK_S and client.gone() is None, client.gone() or f"nothing came for {_STUCK_S:g} s"
        played.counts["restarts"] += client.pid != pid
        pid = client.pid
    # A signal may come after the last token: the end is what the clients see.
    played.counts["tokens"] = now
    last = client.ledger.last
    assert (last.running, last.waiting) == (0, 0) or not played.requests, last
    return played


def _all_behind(played: Played) -> bool:
    """Whether no reader is there: then no token comes, by which theirs would be back."""
    return all(r.back_at is not None for r in played.requests if not r.ended)
